"""Deficit longest prefix match: fair shares that keep the prefix cache warm (https://arxiv.org/abs/2501.14312).

A tenant has a counter of what it may still use; all who are here get ``quantum`` more when nobody has anything left.
Tenants with something left go before those without, and among their requests the one goes first whose beginning is
longest in the prefix cache. A larger quantum keeps more prefix hits and bounds the gap between tenants more loosely:
by ``quantum`` plus what is running when a counter runs out; a huge one is plain longest prefix match (SGLang,
https://arxiv.org/abs/2312.07104). Deviations: a match is looked up in the radix tree when a request arrives and when
it comes first in rank, and between the two it grows as requests that begin alike are admitted (the paper sorts all
that wait at every step, O(n)); it decides among requests that came within the same ``window`` seconds, so that no cold
prefix is passed over for ever; a request whose beginning is being computed just now waits for that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from ._prefixes import PromptTree
from .base import Key, Room, SchedulingPolicy


@dataclass
class Dlpm(SchedulingPolicy):
    """``quantum`` in tokens (an output token counts ``output_weight``), ``block`` in tokens (what is shared counts in
    whole blocks), ``window`` in seconds.
    """

    quantum: int = 4096
    output_weight: float = 2.0
    block: int = 32
    window: float = 30.0

    def __post_init__(self) -> None:
        if min(self.quantum, self.block) < 1 or not self.output_weight >= 0 or not self.window > 0:
            raise ConfigError(
                f"dlpm(quantum={self.quantum}, block={self.block}, window={self.window}, …): counts are 1 or above, "
                "the weight 0 or above, the window above 0"
            )
        self._tree, self._matched = PromptTree(self.block), dict[int, int]()
        self._cached: Callable[[Item], int] = lambda item: 0
        self._left: dict[str, float] = {}
        self._live: dict[str, int] = {}
        self._rich: set[str] = set()  # tenants that are here and have something left
        self._charged: set[int] = set()
        self._moved: dict[int, Item] = {}

    # The order --------------------------------------------------------------------------------------------------------

    def bind(self, cached_tokens: Callable[[Item], int]) -> None:
        self._cached = cached_tokens

    def key(self, item: Item) -> Key:
        return (item.arrival // self.window, -self._matched[item.seq_id], item.arrival, item.seq_id)

    def lane(self, item: Item) -> Hashable:
        return item.tenant

    def lane_rank(self, lane: Hashable, head: Item) -> Key:
        return (0 if head.tenant in self._rich else 1,)

    def moved(self) -> Iterable[Item]:
        moved, self._moved = self._moved, {}
        return moved.values()

    def is_stale(self, item: Item) -> bool:
        matched = self._matched[item.seq_id]
        if not matched:
            return False
        cached = self._cached(item)
        if cached // self.block * self.block >= matched or self._tree.leader_at(item, cached) is not None:
            return False
        self._tree.chill(item, cached)
        self._matched[item.seq_id] = cached // self.block * self.block
        return True

    def hold(self, item: Item, room: Room) -> str:
        return self._tree.why_later(item, self._cached)

    def explain(self, item: Item, ahead: int) -> str:
        used = "" if item.tenant in self._rich else " and its tenant has used its share of this round up"
        return f"{ahead} requests of which more is cached, or that came earlier, go first{used}"

    # What happens -----------------------------------------------------------------------------------------------------

    def arrived(self, item: Item) -> None:
        self._tree.add(item)
        cached = self._cached(item) // self.block * self.block
        self._matched[item.seq_id] = max(cached, self._tree.warm_tokens(item))
        self._live[item.tenant] = self._live.get(item.tenant, 0) + 1
        self._give(item.tenant, 0 if item.tenant in self._left else self.quantum)

    def admitted(self, item: Item, num_cached: int) -> None:
        for node, other in self._tree.lead(item):
            if node.depth * self.block > self._matched[other.seq_id]:
                self._matched[other.seq_id] = node.depth * self.block
                self._moved[other.seq_id] = other
        if item.seq_id not in self._charged:
            self._charged.add(item.seq_id)
            self._charge(item, max(0, len(item.prompt) - num_cached))

    def preempted(self, item: Item) -> None:
        self._tree.retreat(item)

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        for s in scheduled:
            if s.start + s.num_tokens >= len(s.item.prompt):
                self._charge(s.item, self.output_weight)

    def left(self, item: Item, completed: bool) -> None:
        self._charged.discard(item.seq_id)
        self._moved.pop(item.seq_id, None)
        del self._matched[item.seq_id]
        self._tree.remove(item)
        self._live[item.tenant] -= 1
        if not self._live[item.tenant]:
            del self._live[item.tenant]
            self._rich.discard(item.tenant)
            if self._left[item.tenant] >= 0:  # a debt is remembered, a claim is not
                del self._left[item.tenant]
        self._refill()

    # Quanta -----------------------------------------------------------------------------------------------------------

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
