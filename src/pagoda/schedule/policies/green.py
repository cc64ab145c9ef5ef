"""Batch for joules: newcomers gather while others run, and start together.

Reading the weights costs a step the same energy for one sequence as for many, so energy per token falls with the batch
(Towards Greener LLMs, https://arxiv.org/abs/2403.20306). A request is held until ``batch`` of them wait, or the first
has waited ``patience`` seconds, or nothing runs: an idle machine starts at once. The frequency of the machine is not
touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from .base import Key, Room, SchedulingPolicy


@dataclass
class Green(SchedulingPolicy):
    """``batch``: requests that start together. ``patience``: seconds that one is held at most."""

    batch: int = 8
    patience: float = 2.0

    def __post_init__(self) -> None:
        if self.batch < 1 or not self.patience >= 0:
            raise ConfigError(
                f"green(batch={self.batch}, patience={self.patience}): batch is 1 or above, patience 0 or above"
            )
        self._started: set[int] = set()
        self._open = 0

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def hold(self, item: Item, room: Room) -> str:
        if item.seq_id in self._started or room.now - item.arrival >= self.patience:
            return ""
        if self._open == 0 and room.num_waiting >= self.batch:
            self._open = room.num_waiting  # all that wait now belong to the batch, whatever step they fit into
        return "" if self._open else f"{room.num_waiting} of {self.batch} requests that will start together wait"

    def admitted(self, item: Item, num_cached: int) -> None:
        self._started.add(item.seq_id)
        self._open = max(0, self._open - 1)

    def left(self, item: Item, completed: bool) -> None:
        self._started.discard(item.seq_id)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests start before or together with it"


POLICY = Green
