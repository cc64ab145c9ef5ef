"""What every route needs: the service, who asks, the documented errors, JSON out."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from ..errors import ApiError
from ..keys import Caller
from ..roster import Roster
from ..schemas.common import ErrorAnswer
from ..service import Service
from ..streams import encode, while_connected

_MEANING = {
    400: "The request cannot be served as sent; the field is named",
    401: "No such API key",
    403: "Not with this key",
    404: "No such model or object",
    405: "The path does not know this method",
    408: "The body came too slowly",
    409: "Not in the present state of things",
    413: "The body is too large",
    429: "Queue or key limit full; Retry-After says when to ask again",
    500: "The engine failed on this request",
    503: "Shutting down, or the engine is gone",
    504: "No complete answer in time",
}


def errors(*statuses: int, model: Any = ErrorAnswer) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for the OpenAPI document."""
    return {status: {"model": model, "description": _MEANING[status]} for status in statuses}


READS = errors(400, 401, 404, 405)
ASKS = errors(400, 401, 404, 405, 408, 413, 429, 500, 503, 504)

STREAMS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream, server-sent events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""For routes whose answer may be a stream."""


def roster_of(request: Request) -> Roster:
    roster: Roster = request.app.state.roster
    return roster


def service_of(request: Request) -> Service:
    """The first model's, which stands for the server."""
    return roster_of(request).first


async def served(request: Request, model: str | None, *, awake: bool = True) -> Service:
    """The service of the model that a request names, loaded first where it is not here, as long as the client waits.

    It stays until the caller awaits something. Raises as ``Roster.bring``.
    """
    roster = roster_of(request)
    since = roster.first.now()
    while (service := roster.here(model, awake=awake)) is None:
        await while_connected(request, roster.bring(model, since))
    return service


def caller_of(request: Request) -> Caller:
    """Whom the guard let in."""
    caller: Caller = request.scope["state"]["caller"]
    return caller


def request_id_of(request: Request) -> str:
    return str(request.scope["state"]["request_id"])


def require_admin(request: Request) -> None:
    """Raises ApiError 403 for anybody but the admin key (or, on a server without keys, nobody)."""
    if not caller_of(request).is_admin:
        raise ApiError(403, "this needs the admin key", code="admin_only")


def json_answer(data: Any, status: int = 200) -> Response:
    return Response(encode(data), status, media_type="application/json")
