"""One engine without a model: real scheduler, real KV manager, a clock that jumps by what a step would take.

Most steps are like the one before: the same sequences decode, a long prompt goes on by as many tokens, nobody comes,
goes, or is let in. How many such steps follow is known beforehand (``_steady_steps``), so they are run at once: times
are added up one by one, as stepping would, and each sequence takes its tokens and pages in one go. The result is the
same to the last bit (tests compare).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from ...core.clock import FalseClock
from ...core.types import KVFormat
from ...schedule.item import Plan, Scheduled
from ...schedule.policies import parse_scheduling
from ...schedule.policies.base import SchedulingPolicy
from ...schedule.scheduler import Limits, Scheduler
from ..work import StepModel
from .memory import CountedMemory, PagedMemory, SimMemory
from .prefixes import NamedMemory
from .sequence import Job, Served, SimSequence, of

LONGEST_JUMP = 64


@dataclass(frozen=True, slots=True)
class Setting:
    """One replica. ``num_blocks``: its KV, in blocks of ``fmt``; ``scheduling``: a policy's name, or who makes one.

    ``jump``: equal steps at once; ``count_pages``: pages as a number. Neither changes a result; both
    may be switched off for tests.
    """

    fmt: KVFormat
    num_blocks: int
    cost: StepModel
    scheduling: str | Callable[[], SchedulingPolicy] = "fcfs"
    limits: Limits = field(default_factory=Limits)
    use_prefix: bool = True
    jump: bool = True
    count_pages: bool = True


class Replica:
    """Jobs in (``add``), time on (``run_until``). Every token's time is noted in the job's ``Served``.

    ``ended`` is called with each sequence that has all its tokens.
    """

    def __init__(self, setting: Setting, *, ended: Callable[[SimSequence], None] | None = None) -> None:
        self.setting, self.clock = setting, FalseClock()
        self.memory: SimMemory = (
            PagedMemory(setting.fmt, setting.num_blocks, setting.use_prefix)
            if not setting.count_pages
            else NamedMemory(setting.fmt, setting.num_blocks)
            if setting.use_prefix
            else CountedMemory(setting.fmt, setting.num_blocks)
        )
        made = setting.scheduling
        policy = parse_scheduling(made) if isinstance(made, str) else made()
        self.scheduler = Scheduler(setting.limits, policy, self.memory, self.clock)
        self.num_steps = self.num_tokens = self.num_open = 0
        self.busy_seconds = 0.0
        self._ended, self._traits = ended, _Traits.of(self.scheduler.policy)
        self._ahead: list[float] = []  # ends of steps to come that are all like the last one …
        self._taken: list[float] = []  # … and the seconds of each
        self._last = Plan()

    def add(self, seq_id: int, job: Job, served: Served, *, now: float | None = None, moved: int = 0) -> None:
        """The job arrives (at ``now``, default: when it says); one that can never fit is refused in ``served.error``.
        ``moved``: see ``SimSequence``.
        """
        self._catch_up(job.at if now is None else now)
        wanted, capacity = len(job.prompt) + job.num_output, self.memory.capacity_tokens()
        if wanted > capacity:
            served.error = f"{wanted} tokens, and the KV holds {capacity}"
            return
        self.num_open += 1
        self.scheduler.add(SimSequence(seq_id, job, served, moved))

    def run_until(self, seconds: float) -> None:
        """Steps until the clock is there or past it (a step is not cut), or nothing is left to do.

        Steps of a jump that lie ahead are not run before somebody comes or goes: until then nothing depends on them.
        """
        while self.num_open:
            if self._ahead:
                if len(self._ahead) > 1 and self._ahead[-2] >= seconds:
                    return
                self._catch_up(seconds)
            if self.clock.now() >= seconds:
                return
            self._step()
        if seconds != float("inf"):
            self.clock.sleep(seconds - self.clock.now())

    def _step(self) -> None:
        plan = self.scheduler.schedule()
        assert plan.scheduled or plan.preempted, "requests are open, and nothing can run"
        for item, cached in plan.admitted:
            served = of(item).served
            if not served.token_at:
                served.num_cached = cached
        for item in plan.preempted:
            of(item).served.num_preemptions += 1
        if not plan.scheduled:
            return
        seconds = self._seconds(plan)
        self.clock.advance(seconds)
        self.num_steps += 1
        self.busy_seconds += seconds
        num_before = len(self.scheduler.running)
        self._commit(plan)
        self.scheduler.ended(plan, seconds)
        if self.setting.jump and len(self.scheduler.running) == num_before:
            self._look_ahead(plan)

    def _seconds(self, plan: Plan) -> float:
        decodes = slots = chunk = rows = 0
        pairs = 0.0
        for s in plan.scheduled:
            if s.num_tokens == 1:
                decodes, slots, rows = decodes + 1, slots + s.start, rows + 1
            else:
                chunk, pairs = chunk + s.num_tokens, pairs + s.num_tokens * (s.start + s.num_tokens / 2)
                rows += s.start + s.num_tokens == s.item.num_tokens
        return self.setting.cost.step_seconds(decodes, slots, chunk, pairs, rows)

    def _commit(self, plan: Plan) -> None:
        """Tokens are computed; whoever has no more to compute gets one sampled. The inner loop: written flat."""
        now, page_size, use_prefix, memory = (
            self.clock.now(),
            self.memory.page_size,
            self.setting.use_prefix,
            self.memory,
        )
        for s in plan.scheduled:
            sequence, end = of(s.item), s.start + s.num_tokens
            self.num_tokens += s.num_tokens
            sequence.num_computed = end
            if use_prefix and end // page_size > sequence.written // page_size:
                memory.write(sequence, end)
            if end == sequence.num_tokens:
                sequence.num_tokens = end + 1
                sequence.num_output += 1
                sequence.served.token_at.append(now)
                if sequence.num_output == sequence.job.num_output:
                    self._leave(sequence)

    def _leave(self, sequence: SimSequence) -> None:
        self.num_open -= 1
        self.scheduler.remove(sequence)
        if self._ended is not None:
            self._ended(sequence)

    # Equal steps at once --------------------------------------------------------------------------------------------

    def _look_ahead(self, plan: Plan) -> None:
        """Notes when the steps will end that are like the last one, if there are any."""
        num_steps = self._steady_steps(plan)
        if num_steps < 1:
            return
        cost, now = self.setting.cost.step_seconds, self.clock.now()
        last, chunk = plan.scheduled[-1], 0
        decodes, start = len(plan.scheduled), 0
        slots = sum(of(s.item).num_computed for s in plan.scheduled)
        if last.num_tokens > 1:
            decodes, chunk, start = decodes - 1, last.num_tokens, of(last.item).num_computed
            slots -= start
        self._last, self._taken = plan, []
        for _ in range(num_steps):
            pairs = chunk * (start + chunk / 2) if chunk else 0.0
            seconds = cost(decodes, slots, chunk, pairs, decodes)
            now += seconds
            slots += decodes
            start += chunk
            self._ahead.append(now)
            self._taken.append(seconds)

    def _steady_steps(self, plan: Plan) -> int:
        """How many steps from now on are like the last one, whoever else may arrive meanwhile: those that just ran
        decode, and one prompt, if there was one, goes on in chunks that leave no token to others.

        All that run must have run, and nobody may have been thrown out or end. Pages must be there for all. Who waits
        must go on waiting: a prompt takes what they could have; or there is nobody; or no seat is free, and the policy
        takes none away; or the first in rank is the same, was refused just now, and every decode leaves less room.
        """
        scheduler, traits, scheduled = self.scheduler, self._traits, plan.scheduled
        if plan.preempted or len(scheduled) != len(scheduler.running):
            return 0
        chunk = scheduled[-1].num_tokens
        if chunk > 1:
            limit = self.setting.limits.max_num_batched_tokens
            if not traits.is_filled or len(scheduled) + chunk - 1 != limit or len(plan.admitted) > 1:
                return 0
            if plan.admitted and plan.admitted[0][0] is not scheduled[-1].item:
                return 0
        elif plan.admitted:
            return 0
        elif scheduler.waiting:
            full = len(scheduler.running) >= self.setting.limits.max_num_seqs
            if not (traits.is_patient and (full or traits.is_plain)):
                return 0
        num_steps = LONGEST_JUMP
        for s in scheduled[:-1] if chunk > 1 else scheduled:
            sequence = of(s.item)
            if s.num_tokens != 1 or sequence.num_tokens - sequence.num_computed != 1:
                return 0
            left = sequence.job.num_output - sequence.num_output - 1
            if left < num_steps:
                num_steps = left
        if chunk > 1:
            sequence = of(scheduled[-1].item)
            num_steps = min(num_steps, (sequence.num_tokens - sequence.num_computed - 1) // chunk)
        available = self.memory.available_blocks()
        while num_steps > 0 and self._blocks_to_come(scheduled, num_steps) > available:
            num_steps //= 2
        return num_steps

    def _blocks_to_come(self, scheduled: list[Scheduled], num_steps: int) -> int:
        page_size, total = self.memory.page_size, 0
        for s in scheduled:
            sequence = of(s.item)
            missing = sequence.num_computed + num_steps * s.num_tokens - sequence.reserved
            if missing > 0:
                total += -(-missing // page_size)
        return total

    def _catch_up(self, seconds: float) -> None:
        """Runs the noted steps that begin before ``seconds``, and forgets the others."""
        ends = self._ahead
        if not ends:
            return
        now = self.clock.now()
        count = 0 if now >= seconds else min(len(ends), 1 + bisect_left(ends, seconds))
        self._ahead = []
        if count:
            self._run_ahead(ends[:count])

    def _run_ahead(self, ends: list[float]) -> None:
        count, scheduled = len(ends), self._last.scheduled
        for seconds in self._taken[:count]:
            self.busy_seconds += seconds
        self.num_steps += count
        self.num_tokens += count * self._last.num_tokens
        if self._traits.learns:
            self._tell_policy(count)
        self._take_pages(scheduled, count)
        for s in scheduled:
            if s.num_tokens == 1:
                sequence = of(s.item)
                sequence.num_output += count
                sequence.num_tokens += count
                sequence.served.token_at.extend(ends)
        self.clock.advance_to(ends[-1])

    def _take_pages(self, scheduled: list[Scheduled], count: int) -> None:
        """All steps at once; where prefixes must go, which ones depends on when, so whoever takes or fills a page goes
        on step by step.
        """
        at_once = self._blocks_to_come(scheduled, count) <= self.memory.free_blocks()
        page_size, rest = self.memory.page_size, []
        for s in scheduled:
            sequence, num_tokens = of(s.item), count * s.num_tokens
            end = sequence.num_computed + num_tokens
            is_inside = end <= sequence.reserved and sequence.num_computed // page_size == end // page_size
            if at_once or is_inside:
                self._grow(sequence, num_tokens)
            else:
                rest.append(s)
        for _ in range(count if rest else 0):
            for s in rest:
                self._grow(of(s.item), s.num_tokens)

    def _grow(self, sequence: SimSequence, num_tokens: int) -> None:
        granted = self.memory.reserve(sequence, num_tokens)
        assert granted, "room for these steps was counted before"
        sequence.num_computed += num_tokens
        if self.setting.use_prefix:
            self.memory.write(sequence, sequence.num_computed)

    def _tell_policy(self, num_steps: int) -> None:
        for number in range(num_steps):
            ran = [Scheduled(s.item, s.start + (1 + number) * s.num_tokens, s.num_tokens) for s in self._last.scheduled]
            self.scheduler.ended(Plan(ran), self._taken[number])


@dataclass(frozen=True, slots=True)
class _Traits:
    """What a policy leaves as the contract has it.

    learns      it is told of every step
    is_patient  nobody who waits takes the place of one that runs
    is_plain    and the first in rank stays first, is never held back, and a step has room for so many tokens always
    is_filled   a step takes all tokens that it may, decodes first
    """

    learns: bool
    is_patient: bool
    is_plain: bool
    is_filled: bool

    @classmethod
    def of(cls, policy: SchedulingPolicy) -> _Traits:
        def keeps(*names: str) -> bool:
            return all(getattr(type(policy), name) is getattr(SchedulingPolicy, name) for name in names)

        plain = keeps("may_preempt", "hold", "lane", "lane_rank", "token_budget", "moved", "is_stale")
        filled = keeps("token_budget", "prefill_first")
        return cls(learns=not keeps("ran"), is_patient=keeps("may_preempt"), is_plain=plain, is_filled=filled)
