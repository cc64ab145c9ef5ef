"""uvicorn's HTTP protocol with what it lacks: a time limit for headers, a bound on connections, a way to cut one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .buffers import WRITE_BUFFER_BYTES

if TYPE_CHECKING:
    from .buffers import Buffers

HEADER_SECONDS = 20.0
DIRECT = "pagoda.send"
"""Extension of the scope: uvicorn's own ``send``, past everything that only looks at the beginning of an answer."""
CUT = "pagoda.cut"
"""Extension of the scope: a function that drops the connection with whatever its socket still holds."""


_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s"
)
_FULL_BODY = b'{"error":{"message":"too many connections; try again","type":"unavailable_error","param":null,' \
    b'"code":"connections"}}'  # fmt: skip


class Protocol(HttpToolsProtocol):
    """One connection. A subclass (see `protocol_of`) knows whose buffers it is taken from."""

    buffers: Buffers
    _late: asyncio.TimerHandle | None = None
    _is_in = False

    def connection_made(self, transport: Any) -> None:
        self._is_in = self.buffers.connect()
        if not self._is_in:
            transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            transport.close()
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_in:
            self._is_in = False
            self.buffers.disconnect()
            self._headers_came()
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in:
            super().data_received(data)

    def eof_received(self) -> None:
        if self._is_in:
            super().eof_received()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CUT: self.transport.abort}
        self._await_headers()

    def on_headers_complete(self) -> None:
        self._headers_came()
        super().on_headers_complete()

    def _await_headers(self) -> None:
        self._headers_came()
        self._late = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.transport.abort)

    def _headers_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def protocol_of(taken_from: Buffers) -> type[Protocol]:
    """The protocol of one server."""
    return type("Protocol", (Protocol,), {"buffers": taken_from})
