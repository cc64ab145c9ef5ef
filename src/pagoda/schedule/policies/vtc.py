"""Fair shares by virtual token counters (Fairness in Serving Large Language Models, https://arxiv.org/abs/2401.00588).

Each tenant waits in a lane of its own; the lane that was served least goes next. Service is tokens, an output token
counting ``output_weight``, a prompt token one. A prompt is charged when it starts, before anything is known about its
answer. Between two tenants that always wait, service differs by at most 2 max(prompt of one request, ``output_weight``
x tokens in the KV pool) (theorem 4.4). Deviation: prompt tokens found in the prefix cache cost nothing, and a preempted
request is charged for what it computes again only as output, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from ._tenants import LeastServedFirst


@dataclass
class Vtc(LeastServedFirst):
    output_weight: float = 2.0

    def __post_init__(self) -> None:
        if not self.output_weight >= 0:
            raise ConfigError(f"vtc(output_weight={self.output_weight}): give 0 or above")
        super().__post_init__()
        self._charged: set[int] = set()

    def admitted(self, item: Item, num_cached: int) -> None:
        if item.seq_id not in self._charged:
            self._charged.add(item.seq_id)
            self._tenants.charge(item, max(0, len(item.prompt) - num_cached))

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        for s in scheduled:
            if s.start + s.num_tokens >= len(s.item.prompt):
                self._tenants.charge(s.item, self.output_weight)

    def left(self, item: Item, completed: bool) -> None:
        self._charged.discard(item.seq_id)
        super().left(item, completed)

    def explain(self, item: Item, ahead: int) -> str:
        served = self._tenants.served[item.tenant]
        return f"{ahead} requests go first; its tenant was served {served:.0f} tokens' worth, others less"


POLICY = Vtc
