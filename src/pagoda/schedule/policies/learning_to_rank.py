"""Shortest first by a learned order of answer lengths (https://arxiv.org/abs/2408.15792).

The ranker (``prediction/ranker.py``) learns from every answer that ends. A score becomes a place between 0 and
``spread`` seconds behind the arrival, so a prompt that is thought to be the longest of all waits behind those that
arrive within ``spread`` seconds, and behind no later one: the paper's starvation guard raises priorities of those that
waited too long, with the same effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

from ...core.errors import ConfigError
from ..item import Item
from ..prediction.ranker import Ranker
from .base import Key, SchedulingPolicy


@dataclass
class LearningToRank(SchedulingPolicy):
    """``spread``: seconds of arrival that the longest answer is worth."""

    spread: float = 60.0

    def __post_init__(self) -> None:
        if self.spread < 0:
            raise ConfigError(f"learning_to_rank(spread={self.spread}): give seconds from 0")
        self._ranker = Ranker()
        self._delay: dict[int, float] = {}

    def arrived(self, item: Item) -> None:
        score = max(-30.0, min(30.0, self._ranker.score(item.prompt)))
        self._delay[item.seq_id] = self.spread / (1.0 + exp(-score))

    def key(self, item: Item) -> Key:
        return (item.arrival + self._delay[item.seq_id], item.seq_id)

    def left(self, item: Item, completed: bool) -> None:
        del self._delay[item.seq_id]
        if completed:
            self._ranker.observe(item.prompt, item.num_output)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests with answers ranked shorter, or earlier by {self._delay[item.seq_id]:.0f} s, go first"


POLICY = LearningToRank
