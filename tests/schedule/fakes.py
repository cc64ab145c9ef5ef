"""A sequence and a memory that only count, and a machine that runs the scheduler over them under a false clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pagoda.core.clock import FalseClock
from pagoda.schedule.item import Item, Plan
from pagoda.schedule.policies.base import SchedulingPolicy
from pagoda.schedule.scheduler import Limits, Scheduler


@dataclass
class Stream:
    seq_id: int
    num_tokens: int
    arrival: float = 0.0
    priority: int = 0
    num_computed: int = 0
    prompt: Sequence[int] = ()
    num_output: int = 0
    max_output: int | None = None
    tenant: str = ""
    salt: str = ""

    def slots(self, num_tokens: int) -> int:
        return num_tokens

    @property
    def slots_now(self) -> int:
        return self.num_tokens

    @property
    def chunk_end(self) -> int:
        return self.num_tokens


class CountingMemory:
    """Tokens instead of pages: what is reserved is taken from one number."""

    def __init__(self, capacity: int, cached: dict[int, int] | None = None) -> None:
        self.capacity, self.cached = capacity, cached or {}
        self.held: dict[int, int] = {}
        self.num_held = 0

    @property
    def free(self) -> int:
        return self.capacity - self.num_held

    def admit(self, item: Item) -> int:
        cached = self.cached.get(item.seq_id, 0)
        item.num_computed = cached  # type: ignore[misc]
        self.held[item.seq_id] = cached
        self.num_held += cached
        return cached

    def fits(self, item: Item, num_growing: int) -> bool:
        return item.num_tokens - item.num_computed + num_growing <= self.free

    def cached_tokens(self, item: Item) -> int:
        return self.cached.get(item.seq_id, 0)

    def capacity_tokens(self, item: Item) -> int:
        return self.capacity

    def reserve(self, item: Item, num_tokens: int) -> bool:
        wanted = item.num_computed + num_tokens - self.held[item.seq_id]
        if wanted > self.free:
            return False
        self.held[item.seq_id] += max(0, wanted)
        self.num_held += max(0, wanted)
        return True

    def release(self, item: Item) -> None:
        self.num_held -= self.held.pop(item.seq_id, 0)
        item.num_computed = 0  # type: ignore[misc]


@dataclass
class Job:
    """A request to come: an answer of ``length`` tokens to ``prompt``."""

    arrival: float
    prompt: Sequence[int]
    length: int
    priority: int = 0
    tenant: str = ""


@dataclass
class Machine:
    """Steps take ``base + slope x tokens`` seconds. What happened is kept: plans, ends, the item of every job."""

    policy: SchedulingPolicy
    capacity: int = 4000
    limits: Limits = field(default_factory=lambda: Limits(256, 8))
    base: float = 0.01
    slope: float = 0.0001

    def __post_init__(self) -> None:
        self.clock = FalseClock()
        self.memory = CountingMemory(self.capacity)
        self.scheduler = Scheduler(self.limits, self.policy, self.memory, self.clock)
        self.jobs: dict[int, Job] = {}
        self.items: dict[int, Stream] = {}
        self.ends: dict[int, float] = {}
        self.plans: list[tuple[tuple[int, int], ...]] = []

    def run(self, jobs: Sequence[Job], *, until: float = 1e9) -> dict[int, float]:
        """All jobs to their end, or till the clock says ``until``; returns when each ended, by number."""
        coming = sorted(enumerate(jobs), key=lambda pair: pair[1].arrival)
        while self.clock.now() < until and (coming or len(self.ends) < len(self.items)):
            while coming and coming[0][1].arrival <= self.clock.now():
                self._arrive(*coming.pop(0))
            if len(self.ends) == len(self.items):
                self.clock.sleep(coming[0][1].arrival - self.clock.now())
                continue
            self._step()
        return self.ends

    def _arrive(self, number: int, job: Job) -> None:
        item = Stream(number, len(job.prompt), job.arrival, job.priority, prompt=job.prompt, tenant=job.tenant)
        self.jobs[number], self.items[number] = job, item
        self.scheduler.add(item)

    def _step(self) -> None:
        plan: Plan = self.scheduler.schedule()
        assert plan.scheduled or plan.preempted, "something waits or runs, and nothing happens"
        seconds = self.base + self.slope * plan.num_tokens
        self.clock.advance(seconds)
        self.plans.append(tuple((s.item.seq_id, s.num_tokens) for s in plan.scheduled))
        for s in plan.scheduled:
            item = self.items[s.item.seq_id]
            item.num_computed += s.num_tokens
            if item.num_computed == item.num_tokens:
                item.num_tokens, item.num_output = item.num_tokens + 1, item.num_output + 1
            if item.num_output == self.jobs[item.seq_id].length:
                self.ends[item.seq_id] = self.clock.now()
                self.scheduler.remove(item)
        self.scheduler.ended(plan, seconds)
