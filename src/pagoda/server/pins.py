"""Prefixes that stay in the cache because a client asked for it: bounded in number, bytes and time.

The oldest pin goes when a new one needs its place. What is pinned is whole pages of exact KV; a request that lost its
pin pays with a recomputation and with nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.async_llm import AsyncLLM, Pin
from .config import ServerConfig
from .errors import bad


@dataclass(slots=True)
class _Held:
    pin: Pin
    owner: str
    until: float


class Pins:
    """All pins of a server, oldest first."""

    def __init__(self, llm: AsyncLLM, config: ServerConfig) -> None:
        self._llm, self._config = llm, config
        self._held: dict[int, _Held] = {}
        self.max_bytes = int(config.max_pinned_share * llm.kv_capacity_bytes)

    @property
    def num_bytes(self) -> int:
        """KV that is pinned; what two pins share counts twice."""
        return sum(held.pin.num_bytes for held in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    async def hold(self, owner: str, tokens: Sequence[int], salt: str, ttl: float, now: float) -> Pin | None:
        """Pin what is cached of these tokens; None if that is nothing, or more than all pins together may hold."""
        if self._config.max_pins == 0:
            return None
        pin = await self._llm.pin(tokens, salt=salt, ttl=ttl)
        if pin is None:
            return None
        if pin.num_bytes > self.max_bytes:
            await self._llm.unpin(pin)
            return None
        self.expire(now)
        self._held[pin.handle] = _Held(pin, owner, now + ttl)
        while len(self._held) > self._config.max_pins or self.num_bytes > self.max_bytes:
            await self.drop(next(iter(self._held.values())).pin)
        await self._keep_to_limit(owner)
        return pin

    async def drop(self, pin: Pin) -> None:
        """End a pin; one that has ended is no error."""
        if self._held.pop(pin.handle, None) is not None:
            await self._llm.unpin(pin)

    def forget(self) -> None:
        """Everything that was pinned is gone."""
        self._held.clear()

    def expire(self, now: float) -> None:
        """Forget those whose time is over; the engine ends them by itself."""
        for handle in [handle for handle, held in self._held.items() if held.until <= now]:
            del self._held[handle]

    async def _keep_to_limit(self, owner: str) -> None:
        """A key's pins count against its KV limit, its oldest go first."""
        most = self._config.kv_bytes_per_key
        mine = [held for held in self._held.values() if held.owner == owner]
        while most is not None and mine and sum(held.pin.num_bytes for held in mine) > most:
            await self.drop(mine.pop(0).pin)


def check_pinnable(llm: AsyncLLM, kv: str | None) -> None:
    """Raises ApiError where a pin could have no effect."""
    if not llm.config.enable_prefix_caching:
        raise bad("cache_control", "cache_control: prefix caching is off on this server; leave it out")
    if (kv or llm.config.kv).strip() != "exact":
        raise bad("cache_control", "cache_control: only exact KV can be pinned; leave out kv, or cache_control")
