"""What each tenant has been served, and who is here now: the counters and the lanes under vtc and cost."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..item import Item, Scheduled
from .base import Key, SchedulingPolicy

MAX_IDLE = 10_000  # tenants without requests whose counters are remembered


class Tenants:
    """``served[tenant]`` grows with service. A tenant that comes back is lifted to the least served one that is here.

    Without the lift an idle tenant would save up a claim and shut the others out when it returns (VTC, OSDI 2024,
    section 4); with it, no one can claim for time in which it asked for nothing.
    """

    def __init__(self) -> None:
        self.served: dict[str, float] = {}
        self.live: dict[str, int] = {}

    def arrive(self, tenant: str) -> None:
        if tenant not in self.live and self.live:
            self.served[tenant] = max(self.served.get(tenant, 0.0), min(self.served[other] for other in self.live))
        self.served.setdefault(tenant, 0.0)
        self.live[tenant] = self.live.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        self.live[tenant] -= 1
        if not self.live[tenant]:
            del self.live[tenant]
            self._forget()

    def charge(self, item: Item, amount: float) -> None:
        """``amount`` of service; an item that left before its step ended is charged too."""
        self.served[item.tenant] = self.served.get(item.tenant, 0.0) + amount

    def _forget(self) -> None:
        if len(self.served) - len(self.live) <= MAX_IDLE:
            return
        idle = sorted((tenant for tenant in self.served if tenant not in self.live), key=self.served.__getitem__)
        for tenant in idle[: MAX_IDLE // 2]:  # the least served: the lift gives them back most of what is lost
            del self.served[tenant]


class LeastServedFirst(SchedulingPolicy):
    """A lane for each tenant, in order of arrival; the lane of the tenant that was served least goes next."""

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

    def left(self, item: Item, completed: bool) -> None:
        self._tenants.leave(item.tenant)


class TokensServed(LeastServedFirst):
    """Service is tokens: a prompt's when it starts, once, those of the prefix cache for nothing; an output token counts
    ``output_weight``.
    """

    output_weight: float

    def __post_init__(self) -> None:
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
