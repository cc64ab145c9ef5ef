"""Shortest job first, on predicted length, with a limit to how far a long job falls back.

The job is the prompt and the answer that such prompts got of late (``prediction/histogram.py``), in seconds of the
machine as its steps have shown them (``prediction/costs.py``), or as the parameters say. A job of w seconds is ranked
as if it had arrived ``weight`` x w seconds later: with a weight of 1 that is "earliest predicted end", with a large one
pure shortest first. Nobody starves: everything that arrives weight x w seconds later ranks behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from ..prediction.costs import StepCosts
from ..prediction.histogram import Histogram
from .base import Key, SchedulingPolicy


@dataclass
class Sjf(SchedulingPolicy):
    """``token_seconds`` of a generated token and ``prompt_seconds`` of a prompt token (both 0: as the steps say),
    ``weight`` of a job's length.
    """

    token_seconds: float = 0.0
    prompt_seconds: float = 0.0
    weight: float = 100.0

    def __post_init__(self) -> None:
        if not min(self.token_seconds, self.prompt_seconds, self.weight) >= 0:
            raise ConfigError(f"sjf(weight={self.weight}, …): its parameters are 0 or above")
        self._learns = not (self.token_seconds or self.prompt_seconds)
        self._costs = StepCosts() if self._learns else StepCosts(self.prompt_seconds, self.token_seconds)
        self._lengths = Histogram()
        self._work: dict[int, float] = {}

    def arrived(self, item: Item) -> None:
        self._work[item.seq_id] = self._costs.work(len(item.prompt), self._lengths.quantile(item, 0.5))

    def key(self, item: Item) -> Key:
        return (item.arrival + self.weight * self._work[item.seq_id], item.seq_id)

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        if self._learns:
            self._costs.note(scheduled, seconds)

    def left(self, item: Item, completed: bool) -> None:
        del self._work[item.seq_id]
        if completed:
            self._lengths.observe(item)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests with less predicted work, or earlier by its {self._work[item.seq_id]:.2g} s, go first"


POLICY = Sjf
