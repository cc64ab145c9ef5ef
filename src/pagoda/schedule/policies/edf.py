"""Earliest deadline first: the request whose promise is due next.

The promise is a first token ``slo`` seconds after arrival, ``growth`` times as long for each step of ``priority``
(class 1 of growth 4 may wait four times as long as class 0). A deadline is absolute, so nobody starves. Deadlines that
are past stay in order: under overload EDF is late for everyone alike (Liu and Layland, JACM 1973, has the proof that
no order does better where all can be met).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from .base import Key, SchedulingPolicy


@dataclass
class Edf(SchedulingPolicy):
    """``slo``: seconds to the first token of class 0. ``growth``: by what it is multiplied per class."""

    uses_priority = True

    slo: float = 1.0
    growth: float = 4.0

    def __post_init__(self) -> None:
        if not self.slo > 0 or not self.growth >= 1:
            raise ConfigError(f"edf(slo={self.slo}, growth={self.growth}): slo is above 0, growth 1 or above")

    def slack(self, item: Item) -> float:
        """Seconds that its class may wait for a first token."""
        return float(self.slo * self.growth ** max(-20, min(20, item.priority)))

    def key(self, item: Item) -> Key:
        return (item.arrival + self.slack(item), item.seq_id)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests are due before it; it has {self.slack(item):g} s from its arrival"


POLICY = Edf
