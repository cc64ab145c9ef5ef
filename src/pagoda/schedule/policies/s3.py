"""Requests packed into memory by their predicted length, mispredictions caught (S³, https://arxiv.org/abs/2306.06000).

A request starts if prompts and predicted answers of all running ones, and its own, fit. One that outruns its
prediction gets twice as much; where that is not there, the last in rank is preempted and waits again, with what it has
generated. Deviations: the predictor is a histogram by prompt class in place of a fine-tuned DistilBERT; packing is
first-fit in order of arrival, since requests join and leave at every step instead of in batches.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from ..prediction.histogram import Histogram
from .base import Key, Room, SchedulingPolicy


@dataclass
class S3(SchedulingPolicy):
    """``quantile`` of past answers that a prediction covers: higher is safer and packs less."""

    quantile: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise ConfigError(f"s3(quantile={self.quantile}): give a share from 0 to 1")
        self._lengths = Histogram()
        self._predicted: dict[int, int] = {}

    def arrived(self, item: Item) -> None:
        self._predicted[item.seq_id] = self._lengths.quantile(item, self.quantile)

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def hold(self, item: Item, room: Room) -> str:
        packed, mine = sum(map(self._allotted, room.running)), self._allotted(item)
        if packed + mine <= room.capacity_tokens:
            return ""
        return f"{packed} of {room.capacity_tokens} tokens of KV are allotted, it is predicted to need {mine}"

    def left(self, item: Item, completed: bool) -> None:
        del self._predicted[item.seq_id]
        if completed:
            self._lengths.observe(item)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests wait to be packed before it"

    def _allotted(self, item: Item) -> int:
        """Slots of prompt and answer; the prediction doubles until it covers what was generated."""
        while self._predicted[item.seq_id] < item.num_output:
            self._predicted[item.seq_id] *= 2
        return max(item.slots_now, item.slots(len(item.prompt) + self._predicted[item.seq_id]))


POLICY = S3
