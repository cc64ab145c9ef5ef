"""Prompts on some machines, answers on others; and pairs of machines that hold each other's KV. As simulations.

``simulate_split`` (DistServe, https://arxiv.org/abs/2401.09670; Splitwise, https://arxiv.org/abs/2311.18677): a prompt
machine makes the first token, then the prompt's KV goes over its link, one request after another, to the answer machine
with the fewest open requests. The transfer is not overlapped with the prompt layer by layer, which errs against it.

``PairSteps`` (AccelLLM, https://arxiv.org/abs/2411.05555): two machines keep every request's KV twice, so that either
can take all decodes at once while the other runs prompts, without moving anything. Steps of the two are taken together,
the longer one counts, and KV has room for half as many tokens; both err against it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count

from ...core.errors import ConfigError
from ..work import StepModel
from .cluster import Simulated, fewest_open, totals
from .replica import Replica, Setting
from .sequence import Job, Served, SimSequence


@dataclass(frozen=True)
class PairSteps(StepModel):
    """Steps of two machines as one. ``mirror``: seconds in which one prompt token's KV goes over the link."""

    one: StepModel
    mirror: float = 0.0

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        if not chunk:
            half = -(-decodes // 2)
            return self.one.step_seconds(half, slots * half / max(1, decodes), 0, 0.0, half)
        if not decodes:
            return max(self.one.step_seconds(0, 0.0, -(-chunk // 2), pairs / 2, rows), self.mirror * chunk)
        prompts = self.one.step_seconds(0, 0.0, chunk, pairs, max(0, rows - decodes))
        return max(prompts, self.one.step_seconds(decodes, slots, 0, 0.0, decodes), self.mirror * chunk)


def simulate_split(
    jobs: Iterable[Job], prompts: Setting, answers: Setting, num_prompt: int, num_answer: int, *,
    transfer: float = 0.0, progress: Callable[[int], None] | None = None,
) -> Simulated:  # fmt: skip
    """``num_prompt`` machines for prompts, ``num_answer`` for answers. ``transfer``: seconds of a token on the link."""
    if num_prompt < 1 or num_answer < 1:
        raise ConfigError(f"{num_prompt} machines for prompts and {num_answer} for answers; give 1 or more of each")
    split = _Split(prompts, answers, num_prompt, num_answer, transfer)
    started, served = time.perf_counter(), list[Served]()
    for number, job in enumerate(jobs):
        split.run_until(job.at)
        record = Served(job.at, len(job.prompt), job.num_output, job.tenant)
        served.append(record)
        split.add(number, job, record)
        if progress is not None:
            progress(number + 1)
    split.run_until(float("inf"))
    return totals(served, [*split.prompts, *split.answers], time.perf_counter() - started)


class _Split:
    def __init__(self, prompts: Setting, answers: Setting, num_prompt: int, num_answer: int, transfer: float) -> None:
        self.prompts = [Replica(prompts, ended=self._hand_over(at)) for at in range(num_prompt)]
        self.answers = [Replica(answers) for _ in range(num_answer)]
        self._transfer, self._link_free, self._serial = transfer, [0.0] * num_prompt, count()
        self._jobs: dict[int, Job] = {}
        self._moving: list[tuple[float, int, int, Served]] = []  # (there at, serial, sequence, record)

    def add(self, number: int, job: Job, record: Served) -> None:
        """The prompt goes to a machine, unless the whole could never fit where the answer is made."""
        self._jobs[number] = job
        capacity = self.answers[0].memory.capacity_tokens()
        if len(job.prompt) + job.num_output > capacity:
            record.error = f"{len(job.prompt) + job.num_output} tokens, and the KV holds {capacity}"
            return
        fewest_open(job, self.prompts).add(number, replace(job, num_output=1), record)

    def run_until(self, seconds: float) -> None:
        """Prompt machines first: whatever they finish before ``seconds`` is known then, and answers follow in order."""
        for machine in self.prompts:
            machine.run_until(seconds)
        while self._moving and self._moving[0][0] <= seconds:
            there, _, number, record = heapq.heappop(self._moving)
            for machine in self.answers:
                machine.run_until(there)
            job = self._jobs[number]
            fewest_open(job, self.answers).add(number, job, record, now=there, moved=len(job.prompt))
        for machine in self.answers:
            machine.run_until(seconds)

    def _hand_over(self, at: int) -> Callable[[SimSequence], None]:
        def ended(sequence: SimSequence) -> None:
            if self._jobs[sequence.seq_id].num_output == 1:
                return
            start = max(self._link_free[at], sequence.served.token_at[-1])
            there = self._link_free[at] = start + self._transfer * sequence.num_prompt
            heapq.heappush(self._moving, (there, next(self._serial), sequence.seq_id, sequence.served))

        return ended
