"""Two pieces of work in turns, on a machine that others use as well.

A round is both, one after the other, and who goes first changes from round to round. Work is timed step by step, and a
step is the same in every round: its time is the median over rounds, so that a step that was held up counts for nothing,
while one that is always long (a policy acts) counts as it is. Rounds in which others had a processor are dropped and
made again; where that does not help, or the ratio hangs on a single round, it is called noisy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .others import Meter

FEWEST, MOST = 3, 9
"""Rounds that count, and that are made."""
FOREIGN, TICKS = 0.1, 0.04
"""Of a core, and seconds for what /proc rounds: others had no more in a quiet round."""
SPREAD = 0.1
"""By which a ratio may change when any one round is left out."""

Steps = Mapping[str, Sequence[float]]
Round = tuple[Steps, Steps]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long the first piece of work takes as the second."""

    value: float
    noisy: bool


def in_turns(
    first: Callable[[], Steps],
    second: Callable[[], Steps],
    *,
    seconds: float = 5.0,
    meter: Callable[[], Meter] = Meter,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Ratio]:
    """Of each part, from pieces of work that return the seconds of their steps by part. About so many ``seconds`` are
    spent where rounds do not settle, twice as many where others do not let go of the machine, and always enough for
    ``FEWEST`` rounds.
    """
    quiet, disturbed = list[Round](), list[Round]()
    started = clock()
    while len(quiet) + len(disturbed) < MOST:
        enough = len(quiet) >= FEWEST
        if enough and all(_spread(quiet, part) <= SPREAD for part in quiet[0][0]):
            break
        spent = clock() - started
        if len(quiet) + len(disturbed) >= FEWEST and spent > (seconds if enough else 2 * seconds):
            break
        before, watch = clock(), meter()
        if (len(quiet) + len(disturbed)) % 2:
            theirs, ours = second(), first()
        else:
            ours, theirs = first(), second()
        use = watch.read()
        took = clock() - before
        mine = (use.foreign + use.steal) * took <= FOREIGN * took + TICKS
        (quiet if mine else disturbed).append((ours, theirs))
    alone = len(quiet) >= FEWEST
    rounds = quiet if alone else quiet + disturbed
    return {
        part: Ratio(_ratio(rounds, part), not alone or _spread(rounds, part) > SPREAD) for part in rounds[0][0]
    }  # fmt: skip


def _ratio(rounds: Sequence[Round], part: str) -> float:
    first, second = (_usual([one[who][part] for one in rounds]) for who in (0, 1))
    return first / second


def _usual(rounds: Sequence[Sequence[float]]) -> float:
    """Seconds of all steps, each the median over the rounds that have as many steps as most."""
    num_steps = statistics.mode(len(steps) for steps in rounds)
    return sum(map(statistics.median, zip(*(steps for steps in rounds if len(steps) == num_steps), strict=True)))


def _spread(rounds: Sequence[Round], part: str) -> float:
    """How far apart ratios are when one round is left out, as a share."""
    without = [_ratio([*rounds[:at], *rounds[at + 1 :]], part) for at in range(len(rounds))]
    return (max(without) - min(without)) / _ratio(rounds, part)
