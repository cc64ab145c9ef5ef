"""Answers of similar length run together (Response Length Perception, https://arxiv.org/abs/2305.13144).

Requests that arrive within ``window`` seconds are ordered by the bucket of their predicted length, and how many run
together depends on the bucket: many short ones or few long ones (the paper's variable batch size). One that outruns
its bucket counts as one of the next, and is the first to be preempted (its failure collection and recomputation).
Deviations: the predictor is a histogram by prompt class, not the model asked about itself; a batch is open: who ends
makes room at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from ..prediction.histogram import Histogram
from .base import Key, Room, SchedulingPolicy


@dataclass
class LengthPerception(SchedulingPolicy):
    """``width`` of a bucket in tokens, ``window`` in seconds of arrival, ``quantile`` that a prediction covers."""

    width: int = 64
    window: float = 5.0
    quantile: float = 0.7

    def __post_init__(self) -> None:
        if self.width < 1 or not self.window > 0 or not 0 <= self.quantile <= 1:
            raise ConfigError(
                f"length_perception(width={self.width}, window={self.window}, quantile={self.quantile}): "
                "width is 1 or above, window above 0, quantile 0 to 1"
            )
        self._lengths = Histogram()
        self._predicted: dict[int, int] = {}

    def arrived(self, item: Item) -> None:
        self._predicted[item.seq_id] = self._lengths.quantile(item, self.quantile)

    def key(self, item: Item) -> Key:
        return (item.arrival // self.window, self.bucket(item), item.arrival, item.seq_id)

    def bucket(self, item: Item) -> int:
        """Which multiple of ``width`` covers its answer."""
        return -(-max(self._predicted[item.seq_id], item.num_output) // self.width)

    def hold(self, item: Item, room: Room) -> str:
        bound = self.bucket(item) * self.width
        most = max(1, room.capacity_tokens // item.slots(len(item.prompt) + bound))
        if len(room.running) < most:
            return ""
        return f"{len(room.running)} run, and of answers up to {bound} tokens {most} run together"

    def left(self, item: Item, completed: bool) -> None:
        del self._predicted[item.seq_id]
        if completed:
            self._lengths.observe(item)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests of its bucket ({self.bucket(item) * self.width} tokens) or shorter wait before it"


POLICY = LengthPerception
