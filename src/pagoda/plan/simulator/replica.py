"""One engine without a model: real scheduler, real KV manager, a clock that jumps by what a step would take."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...core.clock import FalseClock
from ...core.types import KVFormat
from ...kv.manager import KVManager
from ...kv.pages import PagePool
from ...kv.prefix import PrefixCache
from ...schedule.item import Item
from ...schedule.policies import parse_scheduling
from ...schedule.scheduler import Limits, Scheduler
from .cost import StepCost


@dataclass(frozen=True, slots=True)
class Job:
    """A request ``at`` seconds: ``num_output`` tokens after ``prompt``."""

    at: float
    prompt: Sequence[int]
    num_output: int
    tenant: str = ""
    priority: int = 0


@dataclass(slots=True)
class Served:
    """What became of a request: when each token of the answer came (seconds of the same clock as ``at``)."""

    at: float
    num_prompt: int
    num_output: int
    tenant: str = ""
    num_cached: int = 0
    num_preemptions: int = 0
    token_at: array[float] = field(default_factory=lambda: array("d"))
    error: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One replica. ``num_blocks``: its KV, in blocks of ``fmt``."""

    fmt: KVFormat
    num_blocks: int
    cost: StepCost
    scheduling: str = "fcfs"
    limits: Limits = field(default_factory=Limits)
    use_prefix: bool = True


class _Sequence:
    """The scheduler's view of a job. Sampled tokens are -1: no other answer goes on alike."""

    __slots__ = ("job", "num_computed", "num_output", "prompt", "seq_id", "served")

    def __init__(self, seq_id: int, job: Job, served: Served) -> None:
        self.seq_id, self.job, self.served, self.prompt = seq_id, job, served, job.prompt
        self.num_computed = self.num_output = 0

    salt = ""
    max_output = None  # what a policy knows of the answer's length, it must have learned

    @property
    def priority(self) -> int:
        return self.job.priority

    @property
    def tenant(self) -> str:
        return self.job.tenant

    @property
    def arrival(self) -> float:
        return self.job.at

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + self.num_output

    chunk_end = num_tokens

    def tokens(self, start: int, end: int) -> Sequence[int]:
        num_prompt = len(self.prompt)
        if start >= num_prompt:
            return [-1] * (end - start)
        head = self.prompt[start : min(end, num_prompt)]
        return head if end <= num_prompt else [*head, *([-1] * (end - num_prompt))]


class _PagedMemory:
    """As the engine's, for sequences without tensors."""

    def __init__(self, setting: Setting) -> None:
        pool = PagePool(setting.fmt, setting.num_blocks)
        self.manager = KVManager(setting.fmt, pool, PrefixCache(pool) if setting.use_prefix else None)

    def admit(self, item: Item) -> int:
        sequence = _of(item)
        cached = self.manager.admit(sequence.seq_id, sequence.tokens(0, sequence.num_tokens))
        sequence.num_computed = cached
        return cached

    def fits(self, item: Item, num_running: int) -> bool:
        manager = self.manager
        missing = manager.blocks_needed(item.num_tokens) - item.num_computed // manager.fmt.page_size
        return missing + num_running <= manager.available_blocks()

    def cached_tokens(self, item: Item) -> int:
        if self.manager.prefix is None:
            return 0
        return self.manager.cached_tokens(_of(item).tokens(0, item.num_tokens))

    def capacity_tokens(self, item: Item) -> int:
        return self.manager.capacity_tokens()

    def reserve(self, item: Item, num_tokens: int) -> bool:
        return self.manager.reserve(item.seq_id, num_tokens)

    def release(self, item: Item) -> None:
        self.manager.release(item.seq_id)
        _of(item).num_computed = 0


def _of(item: Item) -> _Sequence:
    assert isinstance(item, _Sequence)
    return item


class Replica:
    """Jobs in (``add``), time on (``run_until``). Every token's time is noted in the job's ``Served``."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.clock = setting, FalseClock()
        self.memory = _PagedMemory(setting)
        self.scheduler = Scheduler(setting.limits, parse_scheduling(setting.scheduling), self.memory, self.clock)
        self.num_steps = self.num_tokens = self.num_open = 0
        self.busy_seconds = 0.0

    def add(self, seq_id: int, job: Job, served: Served) -> None:
        """The job arrives now; one that can never fit is refused in ``served.error``."""
        wanted, capacity = len(job.prompt) + job.num_output, self.memory.manager.capacity_tokens()
        if wanted > capacity:
            served.error = f"{wanted} tokens, and the KV holds {capacity}"
            return
        self.num_open += 1
        self.scheduler.add(_Sequence(seq_id, job, served))

    def run_until(self, seconds: float) -> None:
        """Steps until the clock is there or past it (a step is not cut), or nothing is left to do."""
        while self.num_open and self.clock.now() < seconds:
            self._step()
        if seconds != float("inf"):
            self.clock.sleep(seconds - self.clock.now())

    def _step(self) -> None:
        plan = self.scheduler.schedule()
        assert plan.scheduled or plan.preempted, "requests are open, and nothing can run"
        for item, cached in plan.admitted:
            served = _of(item).served
            if not served.token_at:
                served.num_cached = cached
        for item in plan.preempted:
            _of(item).served.num_preemptions += 1
        if not plan.scheduled:
            return
        self.memory.manager.take_copies()  # nothing to copy here; the engine runs them before each step
        seconds = self.setting.cost.seconds(plan.scheduled)
        self.clock.advance(seconds)
        self.num_steps += 1
        self.busy_seconds += seconds
        self.num_tokens += plan.num_tokens
        for s in plan.scheduled:
            self._commit(_of(s.item), s.start, s.num_tokens)
        self.scheduler.ended(plan, seconds)

    def _commit(self, sequence: _Sequence, start: int, num_tokens: int) -> None:
        manager, end = self.memory.manager, start + num_tokens
        manager.commit(sequence.seq_id, sequence.tokens(start, end))
        sequence.num_computed = end
        if end < sequence.num_tokens:
            return
        sequence.num_output += 1
        sequence.served.token_at.append(self.clock.now())
        if sequence.num_output == sequence.job.num_output:
            self.num_open -= 1
            self.scheduler.remove(sequence)
