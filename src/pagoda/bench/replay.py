"""Arrivals through the real engine in this process: no server and no socket between.

Answers have the lengths of the trace, and nobody is told them beforehand: each ends where a teacher says the end token
(`Request.teacher`), so a policy that predicts lengths must have learned them. One engine serves all policies in
turn, so that two of them see the same weights, the same pool and the same minute of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..core.clock import Clock
from ..core.errors import PagodaError
from ..engine.build import build
from ..engine.config import EngineConfig
from ..engine.intake import Intake
from ..engine.outputs import RequestOutput
from ..plan.simulator.replica import Served
from ..sampling.params import SamplingParams
from ..schedule.policies.base import SchedulingPolicy
from .traces import Arrival

GREEDY = SamplingParams(temperature=0)


class ProcessorClock:
    """Seconds that the calling thread kept a processor busy; sleeping skips. On a machine that others use too it goes
    on only while we work: with an engine of one thread, the load is what an idle machine would have had.
    """

    def __init__(self) -> None:
        self._skipped = 0.0

    def now(self) -> float:
        return time.thread_time() + self._skipped

    def sleep(self, seconds: float) -> None:
        self._skipped += max(0.0, seconds)


@dataclass(frozen=True, slots=True)
class Replayed:
    """One run; times in seconds since it began. ``admitted_at``: when each of ``served`` was first scheduled.
    ``waiting``: before each step, the tenants that had requests waiting; empty where all are of one.
    """

    served: list[Served]
    admitted_at: list[float]
    waiting: list[tuple[float, frozenset[str]]]
    num_preemptions: int
    seconds: float
    num_steps: int


class ReplayEngine:
    """``options`` as for ``LLM``; all times are of ``clock``. Close it, or use it as a context manager."""

    def __init__(self, model: str, clock: Clock | None = None, **options: object) -> None:
        self.built = build(EngineConfig(model, **options), clock)  # type: ignore[arg-type]
        self.engine, self._intake = self.built.engine, Intake(self.built)
        self._end = min(self.built.loaded.eos_ids)
        self._count = 0

    def __enter__(self) -> ReplayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.built.close()

    def with_prompts(self, arrivals: Iterable[Arrival]) -> list[tuple[Arrival, list[int]]]:
        """Each arrival and its token ids."""
        return [(a, a.prompt(self.built.loaded.shape.vocab_size)) for a in arrivals]

    def run(self, arrivals: Sequence[Arrival], policy: SchedulingPolicy) -> Replayed:
        """All arrivals to their ends under ``policy``, the prefix cache empty before. Raises PagodaError for a request
        that failed.
        """
        engine, coming = self.engine, self.with_prompts(sorted(arrivals, key=lambda a: -a.at))
        engine.scheduler.use(policy)
        engine.manager.clear_prefix()
        preemptions, steps = engine.scheduler.num_preemptions, engine.counters.steps
        run = _Run(self, coming)
        run.drive()
        return Replayed(
            list(run.records.values()), [run.admitted_at[name] for name in run.records], run.waiting,
            engine.scheduler.num_preemptions - preemptions, run.now(), engine.counters.steps - steps,
        )  # fmt: skip

    def submit(self, arrival: Arrival, prompt: list[int], teacher: Callable[[int, Tensor], int]) -> str:
        self._count += 1
        request = self._intake.request(f"replay-{self._count}", prompt, GREEDY, priority=arrival.priority)
        request.tenant, request.teacher = arrival.tenant, teacher
        self.engine.add(request)
        return request.request_id

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return self._end


class _Run:
    def __init__(self, engine: ReplayEngine, coming: list[tuple[Arrival, list[int]]]) -> None:
        """``coming``: the last to come first."""
        self._engine, self._coming = engine, coming
        self.records: dict[str, Served] = {}
        self.admitted_at: dict[str, float] = {}
        self.waiting: list[tuple[float, frozenset[str]]] = []
        self._clock = engine.engine.clock
        self._has_tenants = len({arrival.tenant for arrival, _ in coming}) > 1
        self._started = self._clock.now()

    def now(self) -> float:
        return self._clock.now() - self._started

    def drive(self) -> None:
        engine = self._engine.engine
        while self._coming or engine.has_work:
            while self._coming and self._coming[-1][0].at <= self.now():
                self._arrive(*self._coming.pop())
            if not engine.has_work:
                self._clock.sleep(self._coming[-1][0].at - self.now())
                continue
            if self._has_tenants:
                self.waiting.append((self.now(), frozenset(item.tenant for item in engine.scheduler.waiting)))
            for output in engine.step():
                self._ended(output)

    def _arrive(self, arrival: Arrival, prompt: list[int]) -> None:
        wanted = arrival.num_output
        record = Served(arrival.at, len(prompt), 0, arrival.tenant)

        def teach(num_output: int, logits: Tensor) -> int:
            record.token_at.append(self.now())
            record.num_output += 1
            return self._engine.end_id if num_output + 1 >= wanted else prompt[num_output % len(prompt)]

        self.records[self._engine.submit(arrival, prompt, teach)] = record

    def _ended(self, output: RequestOutput) -> None:
        if output.error is not None:
            raise PagodaError(f"a replayed request failed: {output.error}")
        record = self.records[output.request_id]
        record.num_cached, record.num_preemptions = output.usage.cached_tokens, output.num_preemptions
        assert output.timing.first_scheduled is not None
        self.admitted_at[output.request_id] = output.timing.first_scheduled - self._started
