"""Lower ``priority`` numbers first, arrival within a class; a higher class takes the pages of a lower one."""

from __future__ import annotations

from ..item import Item
from .base import Key, SchedulingPolicy


class Priority(SchedulingPolicy):
    uses_priority = True

    def key(self, item: Item) -> Key:
        return (item.priority, item.arrival, item.seq_id)

    def starves(self) -> str:
        return "the classes are strict: urgent traffic without end keeps the rest waiting (see classes)"

    def may_preempt(self, waiting: Item, running: Item) -> bool:
        return waiting.priority < running.priority

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests of its class {item.priority} or a more urgent one wait before it"


POLICY = Priority
