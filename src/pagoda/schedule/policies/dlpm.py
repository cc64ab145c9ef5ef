"""Deficit longest prefix match: fair shares that keep the prefix cache warm (https://arxiv.org/abs/2501.14312).

A tenant has a counter of what it may still use; all who are here get ``quantum`` more when nobody has anything left.
Tenants with something left go before those without, and requests that begin alike go together. A larger quantum keeps
more prefix hits and bounds the gap between tenants more loosely: by ``quantum`` plus what is running when a counter
runs out. Deviations: a match is a first block of ``block`` tokens in common with a request that is here (the paper asks
the radix tree for the longest match at every step, O(n) in the waiting ones); a request moves up at most ``patience``
seconds of arrival to join those that begin like it, so that no cold prefix is passed over for ever.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from ._prefixes import Prefixes
from .base import Key, SchedulingPolicy


@dataclass
class Dlpm(SchedulingPolicy):
    """``quantum`` in tokens (an output token counts ``output_weight``), ``block`` in tokens, ``patience`` in
    seconds.
    """

    quantum: int = 4096
    output_weight: float = 2.0
    block: int = 64
    patience: float = 30.0

    def __post_init__(self) -> None:
        if min(self.quantum, self.block) < 1 or not min(self.output_weight, self.patience) >= 0:
            raise ConfigError(f"dlpm(quantum={self.quantum}, …): counts are 1 or above, weights and seconds 0 or above")
        self._prefixes = Prefixes(self.block)
        self._left: dict[str, float] = {}
        self._live: dict[str, int] = {}
        self._rich: set[str] = set()  # tenants that are here and have something left
        self._charged: set[int] = set()

    def key(self, item: Item) -> Key:
        group = self._prefixes.group(item)
        return (max(group.opened, item.arrival - self.patience), group.number, item.arrival, item.seq_id)

    def lane(self, item: Item) -> Hashable:
        return item.tenant

    def lane_rank(self, lane: Hashable, head: Item) -> Key:
        return (0 if head.tenant in self._rich else 1,)

    def arrived(self, item: Item) -> None:
        self._prefixes.arrive(item)
        self._live[item.tenant] = self._live.get(item.tenant, 0) + 1
        self._give(item.tenant, 0 if item.tenant in self._left else self.quantum)

    def admitted(self, item: Item, num_cached: int) -> None:
        if item.seq_id not in self._charged:
            self._charged.add(item.seq_id)
            self._charge(item, max(0, len(item.prompt) - num_cached))

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        for s in scheduled:
            if s.start + s.num_tokens >= len(s.item.prompt):
                self._charge(s.item, self.output_weight)

    def left(self, item: Item, completed: bool) -> None:
        self._charged.discard(item.seq_id)
        self._prefixes.leave(item)
        self._live[item.tenant] -= 1
        if not self._live[item.tenant]:
            del self._live[item.tenant]
            self._rich.discard(item.tenant)
            if self._left[item.tenant] >= 0:  # a debt is remembered, a claim is not
                del self._left[item.tenant]
        self._refill()

    def explain(self, item: Item, ahead: int) -> str:
        used = "" if item.tenant in self._rich else " and its tenant has used its share of this round up"
        return f"{ahead} requests that share prefixes or came earlier go first{used}"

    def _charge(self, item: Item, amount: float) -> None:
        if item.tenant in self._left:
            self._give(item.tenant, -amount)
            self._refill()

    def _give(self, tenant: str, amount: float) -> None:
        self._left[tenant] = self._left.get(tenant, 0.0) + amount
        if tenant in self._live and self._left[tenant] > 0:
            self._rich.add(tenant)
        else:
            self._rich.discard(tenant)

    def _refill(self) -> None:
        """When nobody who is here has anything left, all get as many quanta as give one of them something."""
        if self._rich or not self._live:
            return
        amount = self.quantum * (int(-max(self._left[tenant] for tenant in self._live) // self.quantum) + 1)
        for tenant in list(self._left):
            self._give(tenant, amount)
            if tenant not in self._live and self._left[tenant] >= 0:
                del self._left[tenant]


POLICY = Dlpm
