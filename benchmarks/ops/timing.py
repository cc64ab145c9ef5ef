"""Two ways of doing the same, in turn, and what each took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Times:
    """Seconds of every round."""

    seconds: tuple[float, ...]

    @property
    def usual(self) -> float:
        return median(self.seconds)

    @property
    def least(self) -> float:
        return min(self.seconds)

    def __str__(self) -> str:
        """Microseconds: the median, and in brackets the least."""
        return f"{self.usual * 1e6:.0f} ({self.least * 1e6:.0f})"


CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
"""cpu: processor time of the calling thread, for one thread on a machine that others use."""


def in_turn(
    ways: dict[str, Callable[[int], object]], rounds: int, warm: int = 1, clock: str = "wall"
) -> dict[str, Times]:
    """Runs ``way(round)`` of every name, one after the other, each round in another order; warm rounds do not count.

    The number of the round lets a way take other weights each time, so that none are left in a cache.
    """
    names, now = list(ways), CLOCKS[clock]
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            started = now()
            ways[name](number)
            if number >= 0:
                found[name].append(now() - started)
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}
