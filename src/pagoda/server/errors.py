"""What a client sees when something cannot be done: one shape, true status codes, the offending field named."""

from __future__ import annotations

import re
from typing import Any

from ..core.errors import AsleepError, ConfigError, EngineClosedError, ModelError, PagodaError, RequestError

# status -> (OpenAI's type, Anthropic's type)
TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    409: ("conflict_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("unavailable_error", "overloaded_error"),
    504: ("timeout_error", "timeout_error"),
}
MAX_MESSAGE_CHARS = 2000
_NAMED = re.compile(r"([a-z_]+)(?:\[[^\]]*\])?=")  # the house form of a bad value: field=value: accepted is …


class ApiError(Exception):
    """Ends a request with this status. ``retry_after`` is in seconds and becomes the header of that name."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> dict[str, Any]:
        """OpenAI's form."""
        kind = TYPES[self.status][0]
        return {"error": {"message": clean(self.message), "type": kind, "param": self.param, "code": self.code}}

    def anthropic_body(self) -> dict[str, Any]:
        """Anthropic's form."""
        return {"type": "error", "error": {"type": TYPES[self.status][1], "message": clean(self.message)}}

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after + 0.5)))}


def bad(param: str | None, message: str, code: str | None = None) -> ApiError:
    """400, naming the field."""
    return ApiError(400, message, param=param, code=code)


def translated(error: PagodaError) -> ApiError:
    """The engine's own errors. What the engine cannot do for this request is the request's fault: 400."""
    message = str(error)
    if isinstance(error, EngineClosedError):
        return ApiError(503, message, code="engine_closed", retry_after=10)
    if isinstance(error, AsleepError):
        return ApiError(503, message, code="cannot_wake", retry_after=10)
    if isinstance(error, (RequestError, ConfigError)):
        named = _NAMED.match(message)
        too_long = "tokens and leaves no room" in message or "but the budget leaves" in message
        return bad(named[1] if named else None, message, "context_length_exceeded" if too_long else None)
    if isinstance(error, ModelError):
        return bad(None, message, "model_refuses")
    return ApiError(500, message)


def clean(message: str) -> str:
    """One line that any JSON encoder takes, of bounded length."""
    text = " ".join(message.encode("utf-8", "replace").decode().split())
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"


def from_validation(errors: list[Any]) -> ApiError:
    """Pydantic's findings as one line naming each field: ``temperature: Input should be a valid number``."""
    lines, first = [], None
    kinds = [error for error in errors if _names_a_kind(error)]
    for error in kinds or errors[:8]:  # text or parts: a part of another kind is no text either, and has other fields
        where = [part for part in error["loc"] if part not in ("body", "query", "path")]
        if kinds:
            where = [part for part in where[:-1] if "[" not in str(part)]
        name = ".".join(str(part) for part in where)[:200] or None
        if error["type"] == "json_invalid":  # its place is an offset
            name = None
        first = first or name
        lines.append(_finding(error, name))
    if len(errors) > 8 and not kinds:
        lines.append(f"and {len(errors) - 8} more")
    return bad(clean(first) if first else None, "; ".join(dict.fromkeys(lines)), _code(errors))


def _names_a_kind(error: Any) -> bool:
    """Whether a part's ``type`` is none that is served."""
    return error["type"] == "literal_error" and error["loc"][-1] == "type"


def _finding(error: Any, name: str | None) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown field {name!r}: this server does not know it, and ignores nothing; leave it out"
    if _names_a_kind(error):
        return f"{name}: type is {error['input']!r}; accepted: {error['ctx']['expected']}"
    if error["type"] == "missing":
        return f"{name or 'a JSON body'} is missing"
    if error["type"] == "model_attributes_type" and name is None:  # curl -d says that it sends a form
        return "the body is no JSON object; send one, with the header Content-Type: application/json"
    if error["type"] == "json_invalid":
        return f"the body is not valid JSON ({error.get('ctx', {}).get('error', error['msg'])})"
    return f"{name}: {error['msg']}" if name else str(error["msg"])


def _code(errors: list[Any]) -> str | None:
    return "unknown_field" if errors and errors[0]["type"] == "extra_forbidden" else None
