"""Pieces of memory that come and go, side by side on huge pages: what is read of each in a step is little, and where it
lies is found sooner.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress

import torch
from torch import Tensor

from .memory import HUGE_BYTES, huge_bytes, huge_mapping

PAGES = 16  # huge pages of a shelf
ALIGNED = 64
LEAST_BYTES, MOST_BYTES = 256 << 10, PAGES * HUGE_BYTES // 4
"""Of a piece: what is shorter is not worth a huge page, the rest of which may be nobody's; what is longer has huge
pages of its own."""


class Shelf:
    """Some huge pages in a row, and the pieces of them that are free::

    pages   │ 0            │ 1            │ 2            │ …
    taken   │█████████ ████████ ███                      │     page 2 is given back, 0 and 1 count whole
    """

    def __init__(self) -> None:
        size = PAGES * HUGE_BYTES
        self._mapping, self._start = huge_mapping(size)
        self._free: dict[int, int] = {0: size}  # where -> how long, never two side by side
        self._users = [0] * PAGES  # pieces on each page
        self._written = [False] * PAGES  # since the system provided it: no longer zeros
        self.taken_bytes = 0

    @property
    def num_pages(self) -> int:
        """Huge pages that somebody uses."""
        return PAGES - self._users.count(0)

    def take(self, num_bytes: int) -> tuple[int, memoryview] | None:
        """A piece of so many bytes, all zero, and where it lies; None where there is no room."""
        at = min((at for at, size in self._free.items() if size >= num_bytes), default=-1)
        if at < 0:
            return None
        size = self._free.pop(at)
        if size > num_bytes:
            self._free[at + num_bytes] = size - num_bytes
        self.taken_bytes += num_bytes
        piece = memoryview(self._mapping)[self._start + at : self._start + at + num_bytes]
        pages = self._pages(at, num_bytes)
        if any(self._written[page] for page in pages):
            torch.frombuffer(piece, dtype=torch.uint8).zero_()
        for page in pages:
            self._users[page] += 1
            self._written[page] = True
        return at, piece

    def give_back(self, at: int, num_bytes: int) -> None:
        """What ``take`` gave; pages that nobody uses any more go back to the system."""
        self.taken_bytes -= num_bytes
        for page in self._pages(at, num_bytes):
            self._users[page] -= 1
            if not self._users[page]:
                with suppress(OSError):
                    self._mapping.madvise(mmap.MADV_DONTNEED, self._start + page * HUGE_BYTES, HUGE_BYTES)
                    self._written[page] = False
        before = next((one for one, size in self._free.items() if one + size == at), at)
        size = self._free.pop(before, 0) + num_bytes
        self._free[before] = size + self._free.pop(at + num_bytes, 0)

    @staticmethod
    def _pages(at: int, num_bytes: int) -> range:
        return range(at // HUGE_BYTES, -(-(at + num_bytes) // HUGE_BYTES))


class Shelves:
    """As many shelves as are needed. One thread takes pieces; they are given back by whoever drops them last.
    ``open``: whether pieces come to lie on them; else each has memory of its own, for those who have few huge pages.
    """

    def __init__(self) -> None:
        self.open = True
        self._shelves: list[Shelf] = []
        self._dropped: deque[tuple[Shelf, int, int]] = deque()

    def take(self, num_bytes: int) -> Tensor:
        """uint8 of a CPU, all zero: ``num_bytes``, or what is left of the last of many huge pages too. A piece is given
        back with the last tensor that looks at it.
        """
        num_bytes = -(-num_bytes // ALIGNED) * ALIGNED
        if not LEAST_BYTES <= num_bytes <= MOST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
            return huge_bytes(num_bytes)
        if not self.open:
            return torch.zeros(num_bytes, dtype=torch.uint8)
        self._collect()
        for shelf in self._shelves:
            if (found := shelf.take(num_bytes)) is not None:
                break
        else:
            self._shelves.append(shelf := Shelf())
            found = shelf.take(num_bytes)
            assert found is not None
        at, piece = found
        weakref.finalize(piece, self._dropped.append, (shelf, at, num_bytes)).atexit = False
        return torch.frombuffer(piece, dtype=torch.uint8)

    @property
    def unused_bytes(self) -> int:
        """Of the huge pages that somebody uses, what nobody does."""
        self._collect()
        return sum(shelf.num_pages * HUGE_BYTES - shelf.taken_bytes for shelf in self._shelves)

    def _collect(self) -> None:
        while self._dropped:
            shelf, at, num_bytes = self._dropped.popleft()
            shelf.give_back(at, num_bytes)
            if not shelf.taken_bytes:
                self._shelves.remove(shelf)
