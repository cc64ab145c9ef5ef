"""The contract of a scheduling policy: an order and a reason. Whether something fits is the memory's question.

A policy is a dataclass: its fields are the parameters of ``--scheduling name(key=value)``, what it remembers is set in
``__post_init__``. It is asked often, so every answer is O(1) in the number of waiting requests, and the order inside a
lane never changes by itself: a request that shall gain on others while it waits gets a key made of its arrival (an item
that is "worth 10 s" more is ranked as if it had come 10 s earlier), which no clock can overturn. What really changes a
rank, such as a prefix that was computed meanwhile, is told by ``moved`` and ``is_stale``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..item import Item, Scheduled

Key = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Room:
    """What admission sees: who runs, how many wait, the tokens of KV that all may hold together, and the time."""

    running: Collection[Item]
    num_waiting: int
    capacity_tokens: int
    now: float


@dataclass
class SchedulingPolicy(ABC):
    """Orders sequences; smaller ranks run first and are preempted last. The rank is the lane's, then the key.

    uses_priority    whether ``Item.priority`` means anything; the server refuses one that would not
    needs_training   whether the engine refuses it for a model without ``pagoda calibrate``; others take what there is
    wants_hidden     whether ``probed`` is told
    """

    uses_priority: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    wants_hidden: ClassVar[bool] = False

    @abstractmethod
    def key(self, item: Item) -> Key:
        """Rank inside the item's lane: a total order (end it with ``seq_id``), the same as long as the item waits,
        but for those that ``moved``.
        """

    @abstractmethod
    def explain(self, item: Item, ahead: int) -> str:
        """Why the item waits, for people: one phrase. ``ahead`` items stand before it."""

    # What may be overruled -------------------------------------------------------------------------------------------

    def starves(self) -> str:
        """Why a request may wait for ever behind newer ones; empty where every request's turn comes."""
        return ""

    def prefill_first(self) -> bool:
        """Whether whole prompts go before running decodes (which then stall), as before chunked prefill."""
        return False

    def lane(self, item: Item) -> Hashable:
        """The queue of its own in which the item waits (a tenant, a level); asked when it begins to wait."""
        return None

    def lane_rank(self, lane: Hashable, head: Item) -> Key:
        """Rank of a lane, whose first is ``head``; it may change at any time. Asked once per lane and admission."""
        return ()

    def may_preempt(self, waiting: Item, running: Item) -> bool:
        """Whether ``waiting`` is worth taking the pages of ``running`` for. The default never is."""
        return False

    def hold(self, item: Item, room: Room) -> str:
        """Why the first in rank shall not start yet though it may fit; empty: it may. Not asked when nothing runs."""
        return ""

    def num_growing(self, num_running: int) -> int:
        """Of those that run, how many must find one more block each beside a newcomer whose known tokens all fit."""
        return num_running

    def token_budget(self, num_decodes: int, limit: int) -> int:
        """Tokens of the next step; held between ``num_decodes`` and ``limit``, which is ``max_num_batched_tokens``."""
        return limit

    def moved(self) -> Iterable[Item]:
        """Items whose lane or key may be another since this was asked last; asked before each step."""
        return ()

    def is_stale(self, item: Item) -> bool:
        """A second look at the first in rank before it is admitted: True if its key has changed just now. Asked again
        without a step between, it says False.
        """
        return False

    # What is told; nothing need be done, so these are no abstract methods ------------------------------------------

    def bind(self, cached_tokens: Callable[[Item], int]) -> None:  # noqa: B027
        """Told once, before anything else: how many of an item's tokens the prefix cache holds now (O(its pages))."""

    def load(self, trained: Mapping[str, Any]) -> None:  # noqa: B027
        """What ``pagoda calibrate`` found for this policy and the engine's model; before any request. Raises KeyError,
        TypeError or ValueError for what it did not write.
        """

    def probed(self, item: Item, hidden: Sequence[float]) -> None:  # noqa: B027
        """The item's prompt is computed: the mean of its hidden states after the final norm (those not cached)."""

    def arrived(self, item: Item) -> None:  # noqa: B027
        """The item is new and is about to wait (told once, before ``lane`` and ``key`` are asked)."""

    def admitted(self, item: Item, num_cached: int) -> None:  # noqa: B027
        """The item starts, or starts again; KV of its first ``num_cached`` tokens was there."""

    def preempted(self, item: Item) -> None:  # noqa: B027
        """The item lost its seat and its pages, and is about to wait again."""

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:  # noqa: B027
        """A step ended. Items may have grown, or have left, since it was planned."""

    def left(self, item: Item, completed: bool) -> None:  # noqa: B027
        """The item is gone: ``completed`` if its answer came to its end, not if it was aborted or failed."""

    # What follows ----------------------------------------------------------------------------------------------------

    def rank(self, item: Item) -> Key:
        """The item among the running ones, smaller is better."""
        return (*self.lane_rank(self.lane(item), item), *self.key(item))
