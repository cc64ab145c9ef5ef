"""Fair shares of memory: the tenant whose requests held the least KV for the least time goes next.

A sequence is charged the tokens of KV that it holds, times the seconds that it holds them: the resource that a memory
budget makes scarce. Bytes are tokens times a constant of the model, so shares are the same. With ``vtc`` a tenant of
few long contexts pays as much as one of many short ones; here it pays for its length at every step. Ours; the counters
and their lift are those of VTC (https://arxiv.org/abs/2401.00588).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..item import Item, Scheduled
from ._tenants import Tenants
from .base import Key, SchedulingPolicy


@dataclass
class Cost(SchedulingPolicy):
    def __post_init__(self) -> None:
        self._tenants = Tenants()

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def lane(self, item: Item) -> Hashable:
        return item.tenant

    def lane_rank(self, lane: Hashable, head: Item) -> Key:
        return (self._tenants.served[head.tenant],)

    def arrived(self, item: Item) -> None:
        self._tenants.arrive(item.tenant)

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        for s in scheduled:
            self._tenants.charge(s.item, (s.start + s.num_tokens) * seconds)

    def left(self, item: Item, completed: bool) -> None:
        self._tenants.leave(item.tenant)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests go first; its tenant held {self._tenants.served[item.tenant]:.0f} token-seconds of KV"


POLICY = Cost
