"""A sequence and a memory that only count: what tests and benchmarks run the scheduler over, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .item import Item


@dataclass
class Stream:
    """An `Item` that says what it is told."""

    seq_id: int
    num_tokens: int
    arrival: float = 0.0
    priority: int = 0
    num_computed: int = 0
    prompt: Sequence[int] = ()
    num_output: int = 0
    max_output: int | None = None
    tenant: str = ""
    salt: str = ""

    def slots(self, num_tokens: int) -> int:
        return num_tokens

    @property
    def slots_now(self) -> int:
        return self.num_tokens

    @property
    def chunk_end(self) -> int:
        return self.num_tokens


class CountingMemory:
    """Tokens instead of pages: what is reserved is taken from one number."""

    def __init__(self, capacity: int, cached: dict[int, int] | None = None) -> None:
        self.capacity, self.cached = capacity, cached or {}
        self.held: dict[int, int] = {}
        self.num_held = 0

    @property
    def free(self) -> int:
        return self.capacity - self.num_held

    def admit(self, item: Item) -> int:
        cached = self.cached.get(item.seq_id, 0)
        item.num_computed = cached  # type: ignore[misc]
        self.held[item.seq_id] = cached
        self.num_held += cached
        return cached

    def fits(self, item: Item, num_growing: int) -> bool:
        return item.num_tokens - item.num_computed + num_growing <= self.free

    def cached_tokens(self, item: Item) -> int:
        return self.cached.get(item.seq_id, 0)

    def capacity_tokens(self, item: Item) -> int:
        return self.capacity

    def reserve(self, item: Item, num_tokens: int) -> bool:
        wanted = item.num_computed + num_tokens - self.held[item.seq_id]
        if wanted > self.free:
            return False
        self.held[item.seq_id] += max(0, wanted)
        self.num_held += max(0, wanted)
        return True

    def release(self, item: Item) -> None:
        self.num_held -= self.held.pop(item.seq_id, 0)
        item.num_computed = 0  # type: ignore[misc]
