"""Shared prefixes with pages as a number: the engine's prefix tree over the *names* of pages.

``PagedMemory`` asks the real manager, which keeps tables of page ids and compares every token. Here a full page is a
name of 16 bytes, what the trace calls its block or a hash of its tokens, and the tree over these names is the engine's
own ``PrefixCache``: the same matches, the same holds, the same order in which unused prefixes are given up. Behind it
are no pages, only how many are free. Tests compare the two, to the last bit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...core.types import KVFormat
from ...kv.pages import Int32s, PagePool
from ...kv.prefix import PrefixCache
from ...schedule.item import Item
from .memory import SimMemory
from .sequence import NAME_BYTES, SimSequence, of

_RUNS = np.zeros(1, np.int32)


class _NoPages(PagePool):
    """Where a pool is expected: nothing is counted."""

    def ref_runs(self, runs: Int32s, run: int) -> None:
        """Entries have no pages."""

    def unref_runs(self, runs: Int32s, run: int) -> None:
        """Entries have no pages."""


class NamedMemory(SimMemory):
    """A block is free, some sequence's ``own`` (reserved, or written and not yet full), or an entry's of the tree."""

    def __init__(self, fmt: KVFormat, num_blocks: int) -> None:
        self.page_size, self._num_blocks, self._num_free = fmt.page_size, num_blocks, num_blocks
        self._tree = PrefixCache(_NoPages(replace(fmt, page_size=NAME_BYTES // 4), 1))
        self._root = self._tree.root()
        self._tree.hold(self._root)

    def admit(self, item: Item) -> int:
        sequence = of(item)
        names, num_pages = self._known(sequence)
        chain = self._tree.match(self._root, names, num_pages, 1)
        sequence.node = chain[-1] if chain else self._root
        self._tree.hold(sequence.node)
        sequence.own_blocks = 0
        sequence.written = sequence.reserved = len(chain) * self.page_size
        sequence.num_computed = max(sequence.written, sequence.moved)
        return sequence.num_computed

    def _known(self, sequence: SimSequence) -> tuple[bytes, int]:
        """Names of the full pages of its known tokens, of which one is always left to compute, and how many."""
        num_pages = (sequence.num_tokens - 1) // self.page_size
        return sequence.page_names(self.page_size, num_pages), num_pages

    def fits(self, item: Item, num_growing: int) -> bool:
        missing = -(-item.num_tokens // self.page_size) - of(item).written // self.page_size
        return missing + num_growing <= self.available_blocks()

    def cached_tokens(self, item: Item) -> int:
        names, num_pages = self._known(of(item))
        return len(self._tree.peek(self._root, names, num_pages, 1)) * self.page_size

    def capacity_tokens(self, item: Item | None = None) -> int:
        return self._num_blocks * self.page_size

    def available_blocks(self) -> int:
        return self._num_free + self._tree.num_idle

    def free_blocks(self) -> int:
        return self._num_free

    def reserve(self, item: Item, num_tokens: int) -> bool:
        sequence = of(item)
        end = sequence.num_computed + num_tokens
        if end <= sequence.reserved:
            return True
        self.write(sequence, min(sequence.num_computed, sequence.reserved))
        num_blocks = -(-(end - sequence.reserved) // self.page_size)
        if num_blocks > self.available_blocks():
            return False
        while self._num_free < num_blocks:
            self._tree.detach_oldest()
            self._num_free += 1
        self._num_free -= num_blocks
        sequence.own_blocks += num_blocks
        sequence.reserved += num_blocks * self.page_size
        return True

    def write(self, sequence: SimSequence, end: int) -> None:
        if end <= sequence.written:
            return
        first, last, node, tree = sequence.written // self.page_size, end // self.page_size, sequence.node, self._tree
        if first < last:
            names = sequence.page_names(self.page_size, last)
        for place in range(first, last):
            name = names[place * NAME_BYTES : (place + 1) * NAME_BYTES]
            found = tree.child(node, name)
            if found is None:
                found = tree.insert(node, name, _RUNS, 1)
                assert found is not None, "two pages have the same hash"
            else:  # computed twice: the sequence reads the page that is there, and its own is free
                self._num_free += 1
            sequence.own_blocks -= 1
            tree.advance(found)
            node = found
        sequence.node, sequence.written = node, end

    def release(self, item: Item) -> None:
        sequence = of(item)
        self._num_free += sequence.own_blocks
        self._tree.release(sequence.node)
        sequence.node = None
        sequence.own_blocks = 0
        sequence.num_computed = sequence.written = sequence.reserved = sequence.moved = 0
