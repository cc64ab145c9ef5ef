"""Server-sent events to a client that may be slow, or gone.

The body is pulled, never pushed: while the socket is full nothing is made, and the engine's deltas join in the
request's mailbox, so a slow reader costs the length of its answer at most. A reader that leaves, or takes nothing for
``send_timeout`` seconds, ends the stream: the generator is closed, which aborts the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError
from .protocol import CUT, DIRECT

if TYPE_CHECKING:
    from starlette.requests import Request

    from .service import Service

T = TypeVar("T")
_log = logging.getLogger(__name__)
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


def event(data: Any) -> bytes:
    """One unnamed event."""
    return b"data: " + encode(data) + b"\n\n"


def named_event(name: str, data: Any) -> bytes:
    """One event with a name, as Anthropic's streams and /v1/responses have them."""
    return b"event: " + name.encode() + b"\ndata: " + encode(data) + b"\n\n"


class EventStream(Response):
    """An answer of events. ``events`` ends by itself; it is closed at once when the client is gone.

    ``close`` runs at the end whatever happened, also when ``events`` was never begun.
    """

    media_type = "text/event-stream"

    def __init__(
        self, service: Service, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]
    ) -> None:
        self.status_code, self.background = 200, None
        self.init_headers(_HEADERS)
        self._service, self._events, self._close = service, events, close
        self._sending_since: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._given_up = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._task = asyncio.current_task()
        watcher = asyncio.ensure_future(_gone(receive))
        watcher.add_done_callback(self._client_left)
        self._service.streams.add(self)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            send = scope.get("extensions", {}).get(DIRECT, send)  # 4 layers less for each event
            async for chunk in self._events:
                self._sending_since = self._service.now()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._sending_since = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not self._given_up:
                raise
            self._task.uncancel()
            cut = scope.get("extensions", {}).get(CUT)
            if cut is not None:  # a plain close would wait for a full socket to empty
                cut()
        finally:
            self._service.streams.discard(self)
            watcher.remove_done_callback(self._client_left)
            watcher.cancel()
            await self._events.aclose()
            await self._close()

    def check(self, now: float, timeout: float) -> None:
        """From the service's ticker: a socket that was full for so long belongs to nobody."""
        if self._sending_since is not None and now - self._sending_since > timeout:
            _log.info("a reader took nothing for %g s and is let go", timeout)
            self._give_up()

    def _client_left(self, _: object) -> None:
        self._give_up()

    def _give_up(self) -> None:
        if self._task is not None and not self._given_up:
            self._given_up = True
            self._task.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client hangs up."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(408, "the client left", code="client_left")
        return task.result()
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
