"""Responses that are kept for ``previous_response_id``: bounded in number and time, and each key sees its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..engine.async_llm import Pin
from .buffers import MAX_STORED_SHARE, Buffers, bytes_of_body
from .config import ServerConfig
from .errors import ApiError
from .streams import encode


@dataclass(slots=True)
class Stored:
    """A response with what the next one needs.

    messages: the whole conversation, answer included, without instructions. items: what this request added to it, as
    input items. text, ids: prompt and answer as they were
    computed; a next prompt that begins with this text takes these ids, and finds their KV.
    """

    response: dict[str, Any]
    owner: str
    messages: list[dict[str, Any]]
    items: list[dict[str, Any]]
    text: str
    ids: list[int]
    until: float
    pin: Pin | None = field(default=None)
    num_bytes: int = 0


class ResponseStore:
    """Oldest first. ``dropped(stored)`` is called for each that leaves, so that its pin can go."""

    def __init__(
        self, config: ServerConfig, now: Callable[[], float], buffers: Buffers, dropped: Callable[[Stored], None]
    ) -> None:
        self._config, self._now, self._buffers, self._dropped = config, now, buffers, dropped
        self.num_bytes = 0
        self._kept: dict[str, Stored] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, response_id: object) -> bool:
        return response_id in self._kept

    def put(self, stored: Stored) -> None:
        """Keep one; the oldest go where there are too many, or too many bytes. One that alone is too large goes too."""
        self._expire()
        stored.num_bytes, most = bytes_of(stored), int(MAX_STORED_SHARE * self._buffers.capacity)
        while self._kept and (
            len(self._kept) >= self._config.max_responses or self.num_bytes + stored.num_bytes > most
        ):
            self._drop(next(iter(self._kept)))
        if stored.num_bytes > most or not self._buffers.take(stored.num_bytes):
            self._dropped(stored)
            return
        self.num_bytes += stored.num_bytes
        self._kept[stored.response["id"]] = stored

    def get(self, response_id: str, owner: str, *, status: int = 404, param: str | None = None) -> Stored:
        """Raises ApiError for an id that is unknown, too old, or another key's: they look the same."""
        self._expire()
        stored = self._kept.get(response_id)
        if stored is None or stored.owner != owner:
            raise ApiError(
                status, f"no response {response_id!r} here; it may be too old, or was not stored", param=param,
                code="previous_response_not_found" if param else "response_not_found",
            )  # fmt: skip
        return stored

    def delete(self, response_id: str, owner: str) -> None:
        """Forget one. Raises ApiError as ``get``."""
        self.get(response_id, owner)
        self._drop(response_id)

    def _expire(self) -> None:
        now = self._now()
        for response_id in [response_id for response_id, stored in self._kept.items() if stored.until <= now]:
            self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        stored = self._kept.pop(response_id)
        self.num_bytes -= stored.num_bytes
        self._buffers.give(stored.num_bytes)
        self._dropped(stored)


def bytes_of(stored: Stored) -> int:
    """About what it takes: the response twice (its items are also messages), the conversation, its text and ids."""
    data = encode((stored.response, stored.messages, stored.items))
    return bytes_of_body(data) + 4 * len(stored.text) + 40 * len(stored.ids)
