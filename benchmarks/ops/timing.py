"""Ways of doing the same, in turn, and what each took."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

REFERENCE = "reference"
"""The op's plain definition: up to a thousand times slower, so it comes last and seldom."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
FEW, LONG = 5, 2.0
SETTLE = 0.02
"""Seconds of calls that do not count, at least one, before a way's turn. Threads of the way before still look for work
(libgomp's for some 15 ms) on a core that this one needs: without them Pagoda's products of 4 to 64 tokens took twice as
long as in a model. Nor is it better to wait: threads that sleep awake late on a virtual machine, torch's by 5 ms.
"""
BURST = 3
"""Calls of a turn that count, one after the other."""


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

    @property
    def spread(self) -> float:
        """The middle half's width / the median: a single disturbed round does not count."""
        ordered, quarter = sorted(self.seconds), len(self.seconds) // 4
        return (ordered[-1 - quarter] - ordered[quarter]) / self.usual


CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
"""cpu: processor time of the calling thread, for one thread on a machine that others use."""


def in_turn(ways: dict[str, Callable[[int], object]], rounds: int, clock: str = "wall") -> dict[str, Times]:
    """Calls every way ``rounds`` times, in turns of ``BURST`` calls, each turn of all in another order.

    What a way is given counts its calls, so that it can take other weights each time and finds none in a cache. After
    ``LONG`` seconds ``FEW`` calls are enough; the reference has as few, and one alone if that takes a quarter as long.
    """
    names = [name for name in ways if name != REFERENCE]
    callers = {name: _Caller(way, CLOCKS[clock]) for name, way in ways.items()}
    until = time.monotonic() + LONG
    turn = 0
    while (done := min(len(callers[name].seconds) for name in names)) < rounds:
        if done >= FEW and time.monotonic() > until:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            callers[name].settle()
            callers[name].count(min(BURST, rounds - done))
        turn += 1
    if REFERENCE in ways:
        while len(callers[REFERENCE].seconds) < min(rounds, FEW) and sum(callers[REFERENCE].seconds) < LONG / 4:
            callers[REFERENCE].count(1)
    return {name: Times(tuple(caller.seconds)) for name, caller in callers.items()}


def keep_memory() -> None:
    """Memory that a call gave back is what the next one is given, as a model keeps its buffers. 80 MB of results that
    come from the system page by page make half of a product's time (4096 tokens in int8: 44 ms, and 21 without).
    """
    with contextlib.suppress(AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class _Caller:
    """One way, how often it was called, and the seconds of the calls that count."""

    def __init__(self, way: Callable[[int], object], now: Callable[[], float]) -> None:
        self._way, self._now, self._calls = way, now, 0
        self.seconds: list[float] = []

    def settle(self) -> None:
        until = time.monotonic() + SETTLE
        self._call()
        while time.monotonic() < until:
            self._call()

    def count(self, num: int) -> None:
        self.seconds += [self._call() for _ in range(num)]

    def _call(self) -> float:
        started = self._now()
        self._way(self._calls)
        self._calls += 1
        return self._now() - started
