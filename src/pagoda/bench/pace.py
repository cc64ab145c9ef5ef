"""How fast this machine's memory is now. Some change their pace within a minute, from one to another and back (a
virtual machine between 40 and 76 GB/s): what is measured there belongs to the pace that was.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

NUM_BYTES, LOOKS = 256 << 20, 3
APART, FEWEST = 1.25, 0.1
"""Two paces are so many times apart, and each is at least that share of all looks."""


class Pace:
    """Looks at it, again and again; ``seen`` has what every look found, in bytes a second."""

    def __init__(self, num_bytes: int = NUM_BYTES) -> None:
        self._source = torch.ones(num_bytes // 8, dtype=torch.int64)
        self.seen: list[float] = []

    def look(self) -> float:
        """Bytes a second that all threads read together: the best of a few readings, some 20 ms."""
        times = []
        for _ in range(LOOKS):
            started = time.perf_counter()
            self._source.sum()
            times.append(time.perf_counter() - started)
        self.seen.append(self._source.nbytes / min(times))
        return self.seen[-1]


def paces(seen: Sequence[float]) -> tuple[float, ...]:
    """The pace of a machine that has one, or its slow and its fast one: medians of either side of the widest gap."""
    ranked = sorted(seen)
    fewest = max(2, round(FEWEST * len(ranked)))
    places = range(fewest, len(ranked) - fewest + 1)
    if places:
        at = max(places, key=lambda place: ranked[place] / ranked[place - 1])
        slow, fast = statistics.median(ranked[:at]), statistics.median(ranked[at:])
        if fast >= APART * slow:
            return slow, fast
    return (statistics.median(ranked),)


def usual(seen: Sequence[float]) -> float:
    """The pace that was there most of the time."""
    found = paces(seen)
    return max(found, key=lambda pace: sum(abs(one - pace) == min(abs(one - p) for p in found) for one in seen))
