"""Measures the step times of one model through its whole engine, for ``plan.steps``: ``doctor --calibrate --model``.

The sweep: so many sequences decode, few and many slots long, and prompts of every size come in beside them. Every step
counts, those that start a batch too; the order is mixed, so that a slow minute of the machine is no slow size.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from torch import Tensor

from ..core.clock import Clock
from ..engine.build import Built, build
from ..engine.config import EngineConfig
from ..engine.intake import Intake
from ..models.catalog import folder_of, read_config
from ..plan.machine import load_machine
from ..plan.roofline import Roofline
from ..plan.steps import FittedSteps, save_steps, steps_file
from ..plan.subject import Subject
from ..sampling.params import SamplingParams
from ..schedule.item import Scheduled
from ..schedule.policies.fcfs import POLICY as Fcfs
from .pace import Pace, usual
from .step_fit import Sample, fit_steps

DECODE_STEPS = 16
"""After a prompt the first steps are slower; an answer has more of the others."""
ALONE_ROUNDS = 3
BATCHES = (0, 1, 2, 4, 8, 16, 32)
CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FEW_CHUNKS = (32, 128, 512)
LONG_PROMPT = 3
FAR, FAR_BATCH = 512, 4
STEP_TOKENS, STEP_SEQS = 512, 32
MIXED_AT_ONCE = (2, 8, 32)


class Recorder(Fcfs):  # type: ignore[misc, valid-type]
    """First come, first served, and what every step was."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.now, self.own_seconds = time.perf_counter, 0.0  # of the last step: what noting it took

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        started = self.now()
        self.samples.append(sample_of(scheduled, seconds))
        self.own_seconds = self.now() - started


def sample_of(scheduled: Sequence[Scheduled], seconds: float) -> Sample:
    """After the step: whose last token was computed has one more by now, and was sampled."""
    decodes = chunk = rows = 0
    slots = pairs = 0.0
    for s in scheduled:
        rows += s.item.num_output > 0
        if s.num_tokens == 1 and s.start >= len(s.item.prompt):
            decodes, slots = decodes + 1, slots + s.start
        else:
            chunk, pairs = chunk + s.num_tokens, pairs + s.num_tokens * (s.start + s.num_tokens / 2)
    return Sample(decodes, slots, chunk, pairs, rows, seconds)


@dataclass
class Sweep:
    """Requests through one engine, every step recorded. ``longest``: tokens that a sequence may have; ``teacher``: of
    every request.
    """

    built: Built
    longest: int
    teacher: Callable[[int, Tensor], int] | None = None
    pace: Pace | None = None

    recorder: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self._intake, self._ids = Intake(self.built), count()
        self._random, self._vocab = random.Random(0), self.built.loaded.shape.vocab_size
        self._num_open, self._noted, self._pace = 0, 0, 0.0 if self.pace is None else self.pace.look()
        self.recorder.now = self.built.engine.clock.now
        self.built.engine.scheduler.use(self.recorder)

    def add(self, num_prompt: int, num_output: int) -> str:
        """A request of random tokens, which no cache knows."""
        prompt = [self._random.randrange(3, self._vocab) for _ in range(num_prompt)]
        name = f"sweep-{next(self._ids)}"
        params = SamplingParams(temperature=0, max_tokens=num_output, ignore_eos=True)
        request = self._intake.request(name, prompt, params)
        request.teacher = self.teacher
        self.built.engine.add(request)
        self._num_open += 1
        return name

    def step(self) -> None:
        """With what the engine does after a step is measured: publishing, policies that learn."""
        samples, clock = self.recorder.samples, self.built.engine.clock
        started, num_before, outputs = clock.now(), len(samples), self.built.engine.step()
        if len(samples) > num_before:
            samples[-1] = samples[-1]._replace(seconds=clock.now() - started - self.recorder.own_seconds)
        self._num_open -= sum(output.finished for output in outputs)

    def rest(self, num_open: int) -> None:
        """Steps until no more requests than that are open, and none of them is a prompt."""
        scheduler = self.built.engine.scheduler
        while self._num_open > num_open or any(
            item.num_tokens - item.num_computed > 1 for item in (*scheduler.running.values(), *scheduler.waiting)
        ):
            self.step()

    def note_pace(self) -> None:
        """The steps since the last time had this pace, between that look and one now."""
        if self.pace is not None:
            samples, before, self._pace = self.recorder.samples, self._pace, self.pace.look()
            samples[self._noted :] = [s._replace(pace=(before + self._pace) / 2) for s in samples[self._noted :]]
            self._noted = len(samples)

    def batch(self, size: int, context: int, chunks: Sequence[int]) -> None:
        """``size`` sequences of ``context`` slots decode alone, then beside prompts of these sizes."""
        names = [self.add(context, self.longest - context) for _ in range(size)]
        self.rest(size)
        for _ in range(DECODE_STEPS if size else 0):
            self.step()
        for chunk in chunks:
            self.add(chunk, 1)
            self.rest(size)
        for name in names:
            self.built.engine.abort(name)
        self._num_open -= size
        self.note_pace()

    def mixture(self, at_once: int, num_tokens: int) -> None:
        """Requests of all lengths, ``at_once`` open at a time, about ``num_tokens`` of prompts in all: steps as traffic
        makes them, hot and cold.
        """
        longest = max(32, min(self.longest // 2, num_tokens // 8))
        while num_tokens > 0:
            prompt = round(math.exp(self._random.uniform(math.log(8), math.log(longest))))
            num_tokens -= prompt
            self.add(prompt, self._random.randrange(2, 48))
            while self._num_open >= at_once:
                self.step()
        self.rest(0)
        self.note_pace()

    def forget(self) -> None:
        """What ran so far was no part of it."""
        self.note_pace()
        self.recorder.samples.clear()
        self._noted = 0

    def seconds_a_token(self, num_tokens: int = 256) -> float:
        """Of a prompt; what the sweep can afford follows from it."""
        num_tokens = min(num_tokens, self.longest // 2)
        self.batch(1, 16, (num_tokens,))  # touches what a served engine has touched
        started = time.perf_counter()
        self.batch(0, 16, (num_tokens,))
        return (time.perf_counter() - started) / num_tokens


def settings(limit: int, longest: int, max_seqs: int, budget: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """(sequences, slots of each, prompts beside them), small and large ones in turn; each takes a part of ``budget``
    tokens of prompts.
    """
    part = budget // 8
    sizes = sorted({min(size, max_seqs) for size in BATCHES}, key=lambda size: (size % 3, size))
    for size in sizes:
        # One batch sees far whatever it costs: what a slot of KV takes cannot be told from a few.
        far = max(16, min(longest // 2, FAR, FAR if size == FAR_BATCH else part // max(1, size)))
        for context in sorted({16, far}) if size else (16,):
            chunks = CHUNKS if size in (0, 4) and context == 16 else FEW_CHUNKS
            fitting = [c for c in chunks if c + size <= limit and c < longest and size < max_seqs]
            long = min(LONG_PROMPT * limit, longest - 2)
            if size in (0, 4) and size < max_seqs and long > limit:
                fitting.append(long)
            wanted = tuple(c for c in fitting if c <= max(limit // 2, part))
            yield size, context, wanted * (ALONE_ROUNDS if not size and ALONE_ROUNDS * sum(wanted) <= part else 1)


def calibrate_model(
    model: str, quantization: str = "auto", kv_cache_dtype: str = "auto",
    progress: Callable[[str], None] = lambda _: None, *, seconds: float = 60.0,
) -> tuple[FittedSteps, Path]:  # fmt: skip
    """Measured, and kept where ``step_model`` finds it."""
    subject = Subject.of(model, read_config(model), folder=folder_of(model))
    config = EngineConfig(
        model, quantization=quantization, kv_cache_dtype=kv_cache_dtype, max_num_seqs=STEP_SEQS,
        max_num_batched_tokens=STEP_TOKENS, structured_output=False, enable_prefix_caching=False,
    )  # fmt: skip
    machine, pace = load_machine()[0], Pace()
    roofline = Roofline(subject.shape, subject.dtype, subject.quantization(quantization), kv_cache_dtype, machine)
    samples = measure_samples(config, progress, seconds=seconds, pace=pace)
    rate = machine.read_bytes_per_second if machine.measured else usual(pace.seen)
    steps = fit_steps([one.at(rate, roofline) for one in samples], roofline if machine.measured else None)
    steps = replace(steps, pace=rate)
    file = steps_file(subject, quantization, kv_cache_dtype, machine)
    save_steps(steps, file)
    return steps, file


def touch(built: Built, num_tokens: int) -> None:
    """Pages of so many tokens get their memory now, and come back to the pool with every request (no prefix keeps
    them): providing it made prompts of a model of 3 million parameters take 1.3 to 1.6 times as long, which is the
    beginning of a server's life and not the rest of it.
    """
    fmt = built.sizes.fmt
    blocks = min(built.sizes.max_blocks, fmt.blocks_for(num_tokens))
    built.engine.storage.pages[: blocks * fmt.pages_per_block].zero_()


def measure_samples(
    config: EngineConfig, progress: Callable[[str], None] = lambda _: None, *, seconds: float = 60.0,
    clock: Clock | None = None, teacher: Callable[[int, Tensor], int] | None = None, pace: Pace | None = None,
) -> list[Sample]:  # fmt: skip
    """Every step of the sweep, in seconds of ``clock``. Goes on in rounds until ``seconds`` are over, one at least.
    ``teacher``: as requests have one, for who compares with answers that are taught. ``pace`` is looked at before and
    after each part, whose steps are noted with it.
    """
    built = build(config, clock)
    try:
        limits, longest = built.engine.scheduler.limits, built.engine.max_model_len
        sweep, started = Sweep(built, min(longest, 4096), teacher, pace), time.perf_counter()
        budget = int(seconds / 3 / sweep.seconds_a_token())
        touch(built, budget // 4 + 4096)
        sweep.forget()
        for number in count(1):
            wanted = settings(limits.max_num_batched_tokens, sweep.longest, limits.max_num_seqs, budget)
            for size, context, chunks in wanted:
                progress(f"steps, round {number}: {size} sequences of {context} slots")
                sweep.batch(size, context, chunks)
                if number > 1 and time.perf_counter() - started > seconds:
                    return sweep.recorder.samples
            progress(f"steps, round {number}: a mixture")
            for at_once in MIXED_AT_ONCE:
                sweep.mixture(min(at_once, limits.max_num_seqs), min(budget // 8, 16 * sweep.longest))
            if time.perf_counter() - started > seconds:
                return sweep.recorder.samples
    finally:
        built.close()
    raise AssertionError("a sweep ends by time")
