"""Which prices are worth their bytes: the Pareto front, and who beats the controls at equal bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .kv import Price, PriceList

CONTROLS = ("recent", "random")
SPREAD = {"kl": 2.0, "perplexity": 0.4}
"""Twice the deviation, from passage to passage, of the logarithm of a method's metric over a control's, as it typically
is: the median of seven methods beside both controls on lantern and stories260K, 14 passages (deviations from 0.1 to 2.7
of KL, 0.1 to 0.3 of perplexity). Of a method whose passages differ more than the median's, other cases turn a verdict
more often than one time in twenty; price lists keep means, not cases, so its own deviation is not known here.
"""


def base_name(kv: str) -> str:
    """``snapkv`` of ``snapkv(budget=0.25)``; compositions keep all of their text."""
    return kv if "+" in kv else kv.partition("(")[0]


def front(found: PriceList, metric: str) -> list[Price]:
    """Prices that no other beats in both bytes held and this metric, by bytes."""
    sign = 1 if found.higher_is_better[metric] else -1
    best: list[Price] = []
    judged = [one for one in found.prices if metric in one.quality]
    for one in sorted(judged, key=lambda p: (p.held_share, -sign * p.quality[metric])):
        if not best or sign * one.quality[metric] > sign * best[-1].quality[metric]:
            best.append(one)
    return best


def control_at(found: PriceList, metric: str, read_share: float, controls: Sequence[str] = CONTROLS) -> float | None:
    """The best that a control reaches where a step reads this share of exact's bytes, marks among them; None without
    controls.

    Between two budgets of a control, and between its largest and exact, the metric is taken to change in a straight
    line; below its smallest budget it is that one's.
    """
    sign = 1 if found.higher_is_better[metric] else -1
    judged = [one for one in found.prices if metric in one.quality]
    whole = [(p.all_read_share, p.quality[metric]) for p in judged if p.kv == "exact"]
    reached = []
    for name in controls:
        mine = sorted((p.all_read_share, p.quality[metric]) for p in judged if base_name(p.kv) == name)
        if mine:
            reached.append(_between([*mine, *whole], read_share))
    return sign * max(sign * value for value in reached) if reached else None


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The line through ``points``, ascending, where x is ``at``."""
    last_x, last_y = points[0]
    for x, y in points:
        if at <= x:
            return y if x == last_x else last_y + (y - last_y) * (at - last_x) / (x - last_x)
        last_x, last_y = x, y
    return last_y


def standings(found: PriceList, metric: str, controls: Sequence[str] = CONTROLS) -> dict[str, int]:
    """Of each method, by its ``kv`` text, beside the better control at the bytes that it reads, marks by which it
    chooses among them: 1 better, -1 worse, 0 as good, which is any difference that other cases might well turn. The
    control is taken as it is: it answered the same cases, so ``SPREAD``, of a ratio, has its error in it, and a share's
    interval has not.
    """
    places = {}
    for one in (one for one in found.prices if metric in one.quality):
        bar = control_at(found, metric, one.all_read_share, controls)
        if one.kv != "exact" and base_name(one.kv) not in controls and bar is not None:
            low, high = interval(metric, one.quality[metric], found.cases_of(metric))
            better = (low > bar) - (high < bar)
            places[one.kv] = better if found.higher_is_better[metric] else -better
    return places


def interval(metric: str, value: float, count: int) -> tuple[float, float]:
    """Where the metric of ``count`` other cases would be: of a share, of a hundred draws of them in 95 (Wilson's); of
    others as far as it typically goes (``SPREAD``).
    """
    if metric in SPREAD:
        wide = math.exp(SPREAD[metric] / count**0.5)
        return value / wide, value * wide
    z = 1.96
    part = z * z / count
    middle = (value + part / 2) / (1 + part)
    wide = z * (value * (1 - value) / count + part / count / 4) ** 0.5 / (1 + part)
    return middle - wide, middle + wide
