"""A machine that runs the scheduler under a false clock, over sequences and memory that only count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pagoda.core.clock import FalseClock
from pagoda.schedule.counting import CountingMemory, Stream
from pagoda.schedule.item import Plan
from pagoda.schedule.policies.base import SchedulingPolicy
from pagoda.schedule.scheduler import Limits, Scheduler


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
