"""First come, first served: the order of arrival, whatever else a request carries."""

from __future__ import annotations

from ..item import Item
from .base import Key, SchedulingPolicy


class Fcfs(SchedulingPolicy):
    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests wait before it"


POLICY = Fcfs
