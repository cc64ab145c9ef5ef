"""Shortest first by a learned order of answer lengths (https://arxiv.org/abs/2408.15792).

The ranker (``prediction/ranker.py``) learns from every answer that ends; ``pagoda calibrate learning_to_rank MODEL``
gives it a beginning. A request's place among the last ones becomes a delay between 0 and ``spread`` seconds behind its
arrival, so a prompt that is thought to be the longest of all waits behind those that arrive within ``spread`` seconds,
and behind no later one: the paper's starvation guard raises priorities of those that waited too long, with the same
effect. Deviation: what is placed is the work of the whole request, its prompt too, in seconds of this machine
(``prediction/costs.py``): the paper ranks answers alone, and on a trace of long prompts and short answers that order
is worse than none.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from ..prediction.costs import StepCosts
from ..prediction.ranker import Ranker
from .base import Key, SchedulingPolicy

NUM_PLACES = 256


@dataclass
class LearningToRank(SchedulingPolicy):
    """``spread``: seconds of arrival that the most work is worth."""

    spread: float = 60.0

    def __post_init__(self) -> None:
        if not self.spread >= 0:
            raise ConfigError(f"learning_to_rank(spread={self.spread}): give seconds from 0")
        self._ranker, self._costs = Ranker(), StepCosts()
        self._recent, self._ordered = deque[float](), list[float]()  # work of the last arrivals
        self._delay: dict[int, float] = {}

    def load(self, trained: Mapping[str, Any]) -> None:
        self._ranker = Ranker.of(trained)

    def arrived(self, item: Item) -> None:
        work = self._costs.work(len(item.prompt), self._ranker.expected(item.prompt))
        self._delay[item.seq_id] = self.spread * self._place(work)

    def key(self, item: Item) -> Key:
        return (item.arrival + self._delay[item.seq_id], item.seq_id)

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        self._costs.note(scheduled, seconds)

    def left(self, item: Item, completed: bool) -> None:
        del self._delay[item.seq_id]
        if completed:
            self._ranker.observe(item.prompt, item.num_output)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests with answers ranked shorter, or earlier by {self._delay[item.seq_id]:.0f} s, go first"

    def _place(self, work: float) -> float:
        """The share of the last requests that had less work, in [0, 1)."""
        place = bisect_left(self._ordered, work) / (len(self._ordered) + 1)
        if len(self._recent) == NUM_PLACES:
            del self._ordered[bisect_left(self._ordered, self._recent.popleft())]
        self._recent.append(work)
        insort(self._ordered, work)
        return place


POLICY = LearningToRank
