"""The first thing that a request meets: its id, its key, the size and speed of its body. Plain ASGI, no parsing yet.

A body is received whole before the application sees the request, so limits hold on one spot and a slow upload occupies
nothing but a connection. What all bodies hold, as they came and parsed, is taken from the server's buffers until their
answers have ended.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .buffers import bytes_of_body
from .errors import ApiError
from .protocol import DIRECT
from .streams import encode

if TYPE_CHECKING:
    from .service import Service

_log = logging.getLogger(__name__)
OPEN_PATHS = ("/health", "/ready", "/version", "/metrics", "/")
OPEN_PREFIXES = ("/page/",)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Guard:
    """Puts ``request_id`` and ``caller`` into the scope's state, or answers with an error itself."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._buffers = app, service, service.buffers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        tagged = _tagged(send, request_id)
        scope.setdefault("extensions", {})[DIRECT] = send
        held = 0
        try:
            state["caller"] = self._service.keys.caller(headers)
            if state["caller"] is None and not is_open(scope["path"]):
                raise ApiError(401, "no such API key; send it as Authorization: Bearer …", code="invalid_api_key")
            if scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._body(headers, receive)
                held = len(body)
                parsed = bytes_of_body(body) - held
                self._buffers.require(parsed, "this body, once it is read,")
                held += parsed
                receive = _replayed(body, receive)
            await self._app(scope, receive, tagged)
        except ApiError as error:
            await answer_error(scope, tagged, error)
        except _Gone:
            return
        finally:
            self._buffers.give(held)

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        config, declared = self._service.config, headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > config.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(config.upload_timeout):
                return await self._receive(receive)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not come within {config.upload_timeout:g} s", code="slow_upload"
            ) from None

    async def _receive(self, receive: Receive) -> bytes:
        """The whole body. What it holds is taken from the buffers from the first byte on, and stays so if whole."""
        parts: list[bytes] = []
        size, held, complete = 0, 0, False
        try:
            while not complete:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                part, complete = message.get("body", b""), not message.get("more_body", False)
                size += len(part)
                if size > self._service.config.max_body_bytes:
                    raise self._too_large()
                self._buffers.require(len(part), "this body")
                held = size
                parts.append(part)
            return b"".join(parts)
        except BaseException:
            self._buffers.give(held)
            raise

    def _too_large(self) -> ApiError:
        most = self._service.config.max_body_bytes
        return ApiError(413, f"the body is larger than {most} bytes, which this server takes", code="body_too_large")


class _Gone(Exception):
    """The client hung up before its request was complete."""


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIXES)


async def answer_error(scope: Scope, send: Send, error: ApiError) -> None:
    """An error in the form that the path's clients read."""
    body = encode(error.anthropic_body() if scope["path"].startswith("/v1/messages") else error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers().items()]
    if error.status in (408, 413):  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _request_id(headers: dict[str, str]) -> str:
    """The client's own, if it is harmless in a log."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex[:20]}"


def _tagged(send: Send, request_id: str) -> Send:
    async def with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
        await send(message)

    return with_id


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
