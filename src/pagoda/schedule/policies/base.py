"""The contract of a scheduling policy: an order and a reason. Whether something fits is the memory's question."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..item import Item

Key = tuple[float, ...]


class SchedulingPolicy(ABC):
    """Orders sequences; smaller keys run first and are preempted last.

    A key must be a total order (end it with ``seq_id``) and must not change while an item waits, unless ``dynamic``
    is true: then the waiting queue is sorted anew at each step.
    """

    dynamic: bool = False

    @abstractmethod
    def key(self, item: Item, now: float) -> Key:
        """Rank of the item at clock time ``now`` (seconds)."""

    def may_preempt(self, waiting: Item, running: Item) -> bool:
        """Whether ``waiting`` is worth taking the pages of ``running`` for. The default never is."""
        return False

    @abstractmethod
    def explain(self, item: Item, ahead: int) -> str:
        """Why the item waits, for people: one phrase. ``ahead`` items stand before it."""
