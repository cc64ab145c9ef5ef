"""Where a run stops warming up, and whether it settles at all.

MSER-5 (White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69(6), 1997):
of the series of batch means, drop as many at the beginning as make the standard error of the mean of the rest
smallest. Where that is more than half of them, the series has not settled within the run: there is no steady state to
report, such as under an overload, where the queue grows as long as requests come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ..plan.simulator.sequence import Served
from .latency import e2e

BATCH = 5


@dataclass(frozen=True, slots=True)
class Steady:
    """``start``: seconds of arrivals to be left out. ``settled``: False where nothing is steady within the run."""

    start: float
    num_dropped: int
    settled: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def steady_state(records: Sequence[Served]) -> Steady:
    """By the end-to-end seconds of answered requests in order of arrival. Fewer than 10 batches tell nothing."""
    done = sorted((r for r in records if r.token_at and not r.error), key=lambda r: r.at)
    means = [fmean(e2e(r) for r in done[i : i + BATCH]) for i in range(0, len(done) - BATCH + 1, BATCH)]
    if len(means) < 10:
        return Steady(0.0, 0, settled=False)
    dropped = mser(means)
    settled = dropped <= len(means) // 2
    count = dropped * BATCH if settled else 0
    return Steady(done[count].at, count, settled)


def mser(values: Sequence[float]) -> int:
    """How many of the first values to drop: argmin over d of sum((x - mean)²) / (n - d)², of all but the last five,
    whose variance is small by chance.
    """
    total = squares = 0.0
    best, found = float("inf"), len(values)
    for start in range(len(values) - 1, -1, -1):
        total, squares, count = total + values[start], squares + values[start] ** 2, len(values) - start
        error = max(0.0, squares - total * total / count) / count**2
        if count >= 5 and error <= best:
            best, found = error, start
    return found
