"""Fair shares of memory: the tenant whose requests held the least KV for the least time goes next.

A sequence is charged the tokens of KV that it holds, times the seconds that it holds them: the resource that a memory
budget makes scarce. Bytes are tokens times a constant of the model, so shares are the same. With ``vtc`` a tenant of
few long contexts pays as much as one of many short ones; here it pays for its length at every step. Ours; the counters
and their lift are those of VTC (https://arxiv.org/abs/2401.00588).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..item import Item, Scheduled
from ._tenants import LeastServedFirst


@dataclass
class Cost(LeastServedFirst):
    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        for s in scheduled:
            self._tenants.charge(s.item, (s.start + s.num_tokens) * seconds)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests go first; its tenant held {self._tenants.served[item.tenant]:.0f} token-seconds of KV"


POLICY = Cost
