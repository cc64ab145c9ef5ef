"""Shortest job first, on predicted length, with a limit to how far a long job falls back.

The job is the prompt and the answer that such prompts got of late (``prediction/histogram.py``), in the time that the
parameters say they take. A job of w seconds is ranked as if it had arrived ``weight`` x w seconds later: with a
weight of 1 that is "earliest predicted end", with a large one pure shortest first. Nobody starves: everything that
arrives weight x w seconds later ranks behind.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from ..prediction.histogram import Histogram
from .base import Key, SchedulingPolicy


@dataclass
class Sjf(SchedulingPolicy):
    """``token_seconds`` of a generated token, ``prompt_seconds`` of a prompt token, ``weight`` of a job's length."""

    token_seconds: float = 0.05
    prompt_seconds: float = 0.001
    weight: float = 10.0

    def __post_init__(self) -> None:
        if min(self.token_seconds, self.prompt_seconds, self.weight) < 0:
            raise ConfigError(f"sjf(weight={self.weight}, …): its parameters are 0 or above")
        self._lengths = Histogram()
        self._work: dict[int, float] = {}

    def arrived(self, item: Item) -> None:
        output = self._lengths.quantile(item, 0.5)
        self._work[item.seq_id] = self.token_seconds * output + self.prompt_seconds * len(item.prompt)

    def key(self, item: Item) -> Key:
        return (item.arrival + self.weight * self._work[item.seq_id], item.seq_id)

    def left(self, item: Item, completed: bool) -> None:
        del self._work[item.seq_id]
        if completed:
            self._lengths.observe(item)

    def explain(self, item: Item, ahead: int) -> str:
        work = self._work[item.seq_id]
        return f"{ahead} shorter or earlier requests wait before it; it is expected to take {work:.1f} s"


POLICY = Sjf
