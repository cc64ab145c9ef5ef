"""The memory that simulated sequences live in: the engine's page accounting, without tensors.

``PagedMemory`` is the real manager, asked in bulk: a sequence knows how many slots its pages have and how many of its
tokens the manager was told of, so that the manager is called when a page is full or missing, not at every token. Where
no prefix is shared, an exact sequence's pages are nobody else's, and ``CountedMemory`` counts them: the plain number
that the manager would come to. Where prefixes are shared, ``NamedMemory`` (``prefixes.py``) does. Tests compare them.
"""

from __future__ import annotations

from abc import abstractmethod

from ...core.types import KVFormat
from ...kv.manager import KVManager
from ...kv.pages import PagePool
from ...kv.prefix import PrefixCache
from ...schedule.item import Item, Memory
from .sequence import SimSequence, of


class SimMemory(Memory):
    """What the simulator asks beside what the scheduler does."""

    page_size: int

    @abstractmethod
    def capacity_tokens(self, item: Item | None = None) -> int:
        """Tokens of KV that all sequences together may hold."""

    @abstractmethod
    def available_blocks(self) -> int:
        """Blocks that could be had now, those of unused prefixes included."""

    def free_blocks(self) -> int:
        """Blocks that could be had now with no prefix given up."""
        return self.available_blocks()

    @abstractmethod
    def write(self, sequence: SimSequence, end: int) -> None:
        """The tokens up to ``end`` are computed, and fill a page: it becomes an entry of the prefix cache."""


class PagedMemory(SimMemory):
    """As the engine's, over the real manager."""

    def __init__(self, fmt: KVFormat, num_blocks: int, use_prefix: bool) -> None:
        pool = PagePool(fmt, num_blocks)
        self.manager = KVManager(fmt, pool, PrefixCache(pool) if use_prefix else None)
        self.page_size, self._use_prefix = fmt.page_size, use_prefix

    def admit(self, item: Item) -> int:
        sequence = of(item)
        known = sequence.tokens(0, sequence.num_tokens) if self._use_prefix else range(sequence.num_tokens)
        cached = self.manager.admit(sequence.seq_id, known)
        sequence.written = sequence.reserved = cached
        sequence.num_computed = max(cached, sequence.moved)
        return sequence.num_computed

    def fits(self, item: Item, num_growing: int) -> bool:
        manager = self.manager
        missing = manager.blocks_needed(item.num_tokens) - of(item).written // self.page_size
        return missing + num_growing <= manager.available_blocks()

    def cached_tokens(self, item: Item) -> int:
        return self.manager.cached_tokens(of(item).tokens(0, item.num_tokens)) if self._use_prefix else 0

    def capacity_tokens(self, item: Item | None = None) -> int:
        return self.manager.capacity_tokens()

    def available_blocks(self) -> int:
        return self.manager.available_blocks()

    def free_blocks(self) -> int:
        prefix = self.manager.prefix
        return self.manager.available_blocks() - (prefix.num_idle if prefix is not None else 0)

    def reserve(self, item: Item, num_tokens: int) -> bool:
        sequence = of(item)
        end = sequence.num_computed + num_tokens
        if end <= sequence.reserved:
            return True
        self.write(sequence, min(sequence.num_computed, sequence.reserved))
        if not self.manager.reserve(sequence.seq_id, end - sequence.written):
            return False
        sequence.reserved = sequence.written + self.manager.table(sequence.seq_id).room
        return True

    def write(self, sequence: SimSequence, end: int) -> None:
        if end > sequence.written:
            known = sequence.tokens(sequence.written, end) if self._use_prefix else range(sequence.written, end)
            self.manager.commit(sequence.seq_id, known)
            sequence.written = end

    def release(self, item: Item) -> None:
        sequence = of(item)
        self.manager.release(sequence.seq_id)
        sequence.num_computed = sequence.written = sequence.reserved = sequence.moved = 0


class CountedMemory(SimMemory):
    """Blocks as a number; nothing is shared."""

    def __init__(self, fmt: KVFormat, num_blocks: int) -> None:
        self.page_size, self._num_blocks, self._num_free = fmt.page_size, num_blocks, num_blocks

    def admit(self, item: Item) -> int:
        sequence = of(item)
        sequence.num_computed = sequence.moved
        return sequence.moved

    def fits(self, item: Item, num_growing: int) -> bool:
        return -(-item.num_tokens // self.page_size) + num_growing <= self._num_free

    def cached_tokens(self, item: Item) -> int:
        return 0

    def capacity_tokens(self, item: Item | None = None) -> int:
        return self._num_blocks * self.page_size

    def available_blocks(self) -> int:
        return self._num_free

    def reserve(self, item: Item, num_tokens: int) -> bool:
        missing = item.num_computed + num_tokens - item.reserved  # type: ignore[attr-defined]
        if missing <= 0:
            return True
        blocks = -(-missing // self.page_size)
        if blocks > self._num_free:
            return False
        self._num_free -= blocks
        of(item).reserved += blocks * self.page_size
        return True

    def write(self, sequence: SimSequence, end: int) -> None:
        sequence.written = end

    def release(self, item: Item) -> None:
        sequence = of(item)
        self._num_free += sequence.reserved // self.page_size
        sequence.num_computed = sequence.written = sequence.reserved = sequence.moved = 0
