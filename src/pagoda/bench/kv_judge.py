"""Which prices are worth their bytes: the Pareto front, and who does not beat the controls at equal bytes."""

from __future__ import annotations

from collections.abc import Sequence

from .kv import Price, PriceList

CONTROLS = ("recent", "random")


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


def losers(found: PriceList, metric: str, controls: Sequence[str] = CONTROLS) -> list[str]:
    """Methods that do not beat every control at the bytes that they read, marks by which they choose among them, by
    this metric: ``kv`` texts.
    """
    sign = 1 if found.higher_is_better[metric] else -1
    lost = []
    for one in (one for one in found.prices if metric in one.quality):
        bar = control_at(found, metric, one.all_read_share, controls)
        if one.kv != "exact" and base_name(one.kv) not in controls and bar is not None:
            lost += [one.kv] if sign * one.quality[metric] <= sign * bar else []
    return lost
