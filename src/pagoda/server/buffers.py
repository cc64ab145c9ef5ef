"""What the server holds beside the engine, counted against one lease: connections, bodies, logprobs, stored responses.

    server lease | connections | bodies, as they came and parsed | logprobs under way | stored responses | free |

What does not fit is refused with 429, or 413 where it never could; nothing here grows with how long a client is slow.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..core.units import format_bytes
from .errors import ApiError

if TYPE_CHECKING:
    from ..engine.async_llm import AsyncLLM

WRITE_BUFFER_BYTES = 16 << 10
"""Of a socket that does not empty; beyond it nothing more is written until it does."""
CONNECTION_BYTES = 16 * 1024 + WRITE_BUFFER_BYTES
"""Protocol, parser and transport (an estimate, not a measurement), and the buffer."""
MAX_CONNECTION_SHARE = 0.5
MAX_STORED_SHARE = 0.25
MAX_REQUEST_SHARE = 0.875
"""What requests leave is for connections, so that a client can be told that there is no room."""
LOGPROB_BYTES = 640
"""Of one alternative of one token, from the engine's report to the JSON object: measured 470, 20 for a token."""
BYTES_PER_TEXT_BYTE = 5
BYTES_PER_MARK = 160
"""Body, JSON objects and checked model of a body: a text in wide characters holds 2.6 a byte (6 for the moment of its
parsing), and a comma, colon or bracket outside of texts 143 at most (conversations of many short messages).
"""
_TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_ROUGHLY = 1 << 20


class Buffers:
    """``capacity`` bytes, leased from the engine's ledger. Used in the event loop's thread only."""

    def __init__(self, llm: AsyncLLM, capacity: int) -> None:
        self.capacity, self.held, self.num_connections = capacity, 0, 0
        self._lease = llm.lease("server", capacity, "connections, requests, stored responses", lambda: self.held)

    def take(self, num_bytes: int, *, share: float = MAX_REQUEST_SHARE) -> bool:
        """Whether there was room in this share of all; then it is taken."""
        fits = self.held + num_bytes <= share * self.capacity
        if fits:
            self.held += num_bytes
        return fits

    def require(self, num_bytes: int, what: str, *, param: str | None = None) -> None:
        """As ``take``. Raises ApiError: 413 (400 with ``param``) for what could never fit, 429 for what may later."""
        if self.take(num_bytes):
            return
        if num_bytes > self.capacity // 2:
            raise ApiError(
                400 if param else 413, f"{what} may take {format_bytes(num_bytes)}; this server has "
                f"{format_bytes(self.capacity)} for all requests together (--server-memory)", param=param,
                code="body_too_large" if param is None else None,
            )  # fmt: skip
        raise ApiError(429, "too many large requests at once; try again", code="buffers_full", retry_after=2)

    def give(self, num_bytes: int) -> None:
        """The bytes are free again."""
        self.held -= num_bytes
        assert self.held >= 0, "more was given back than taken"

    def connect(self) -> bool:
        """Whether another connection may be open."""
        fits = (self.num_connections + 1) * CONNECTION_BYTES <= MAX_CONNECTION_SHARE * self.capacity
        fits = fits and self.take(CONNECTION_BYTES, share=1.0)
        self.num_connections += fits
        return fits

    def disconnect(self) -> None:
        """A connection that was let in has closed."""
        self.num_connections -= 1
        self.give(CONNECTION_BYTES)

    def close(self) -> None:
        """Give the lease back."""
        if self._lease is not None:
            self._lease.release()


def bytes_of_body(body: bytes) -> int:
    """The most that a body takes until its answer has ended: itself, its JSON objects, the checked model."""
    rough = _with_marks(body, len(body))
    return rough if rough < _ROUGHLY else _with_marks(_TEXTS.sub(b"", body), len(body))


def _with_marks(body: bytes, num_bytes: int) -> int:
    return BYTES_PER_TEXT_BYTE * num_bytes + BYTES_PER_MARK * sum(map(body.count, (b",", b":", b"[", b"{")))
