"""Teacher forcing through the real engine: batched, chunked, with the pages that the policy leaves.

A case is a prompt and what is said after it. The prompt is computed as any prompt, the policy acts, and then the given
tokens go in one by one; at each place the model's own logits are looked at. So a method is judged on the KV that it
really kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..core.errors import PagodaError
from ..engine.build import Built, build
from ..engine.config import EngineConfig
from ..engine.intake import Intake
from ..sampling.params import SamplingParams


@dataclass(frozen=True)
class Case:
    """``forced_ids[i]`` is what follows ``prompt_ids + forced_ids[:i]``; ``scored`` are the places that count."""

    prompt_ids: tuple[int, ...]
    forced_ids: tuple[int, ...]
    scored: tuple[int, ...]
    tags: dict[str, int | str] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.forced_ids)


@dataclass
class Answer:
    """What the model said at the scored places of one case.

    logits float32 ``[len(scored), vocab]``; held_bytes: KV held after each token of the answer, on the average;
    noted_bytes: what the policy remembers beside it; looked_bytes: of that, what a selection looks at in a step to
    choose; peak_bytes: the most KV (the whole prompt, for methods that act at its end).
    """

    case: Case
    logits: Tensor
    held_bytes: float = 0.0
    noted_bytes: float = 0.0
    looked_bytes: float = 0.0
    peak_bytes: int = 0

    @property
    def wanted(self) -> Tensor:
        """int64 ``[len(scored)]``: the tokens that were right."""
        return torch.tensor([self.case.forced_ids[place] for place in self.case.scored])

    @property
    def hits(self) -> Tensor:
        """bool ``[len(scored)]``: where the likeliest token was the right one."""
        return self.logits.argmax(-1) == self.wanted


class ForcedEngine:
    """An engine opened for measuring. ``options`` as for ``LLM``. Close it, or use it as a context manager."""

    def __init__(self, model: str, **options: object) -> None:
        self.built: Built = build(EngineConfig(model, **options))  # type: ignore[arg-type]
        self.engine, self._intake = self.built.engine, Intake(self.built)
        self._count = 0

    def __enter__(self) -> ForcedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.built.close()

    def run(self, cases: Sequence[Case], kv: str, *, at_once: int = 16) -> Iterator[Answer]:
        """Answers in the order of the cases, ``at_once`` cases in one batch.

        Raises ConfigError or RequestError for a policy that cannot run on this model, before anything is computed.
        """
        for first in range(0, len(cases), at_once):
            batch = [self._add(case, kv) for case in cases[first : first + at_once]]
            self._drive(dict(batch))
            for _, answer in batch:
                yield answer

    @property
    def pages(self) -> tuple[int, int]:
        """Pages that selections read so far, and pages that were there to be read."""
        counters = self.engine.counters
        return counters.pages_read, counters.pages_held

    def why_not(self, kv: str) -> str | None:
        """Why this model cannot run a policy, or None."""
        params = SamplingParams(max_tokens=1, kv=kv)
        try:
            self.engine.add(self._intake.request("asked", [0], params))
        except PagodaError as error:
            return str(error)
        self.engine.abort("asked")
        while self.engine.has_work:
            self.engine.step()
        return None

    def timed(self, prompts: Sequence[list[int]], params: SamplingParams) -> tuple[list[float], list[float]]:
        """Seconds of each step until every prompt has its first token, and of each from there to the last token of
        all.
        """
        for ids in prompts:
            self._count += 1
            self.engine.add(self._intake.request(f"timed-{self._count}", ids, params))
        seconds, num_prefill = list[float](), 0
        while self.engine.has_work:
            started = time.perf_counter()
            self.engine.step()
            seconds.append(time.perf_counter() - started)
            scheduler = self.engine.scheduler
            if not num_prefill and not scheduler.waiting:
                running: Any = scheduler.running.values()
                num_prefill = len(seconds) if all(s.num_tokens > s.prompt_len for s in running) else 0
        return seconds[:num_prefill], seconds[num_prefill:]

    def _add(self, case: Case, kv: str) -> tuple[str, Answer]:
        self._count += 1
        params = SamplingParams(temperature=0, max_tokens=len(case.forced_ids) + 1, ignore_eos=True, seed=7, kv=kv)
        request = self._intake.request(f"forced-{self._count}", list(case.prompt_ids), params, stream=True)
        answer = Answer(case, torch.empty(len(case.scored), self.built.loaded.shape.vocab_size))
        request.teacher = _teacher(case, answer.logits)
        self.engine.add(request)
        return request.request_id, answer

    def _drive(self, answers: dict[str, Answer]) -> None:
        held: dict[str, list[int]] = {request_id: [] for request_id in answers}
        noted: dict[str, list[tuple[float, float]]] = {request_id: [] for request_id in answers}
        while self.engine.has_work:
            outputs = self.engine.step()
            self._look_at_notes(noted)
            for output in outputs:
                answer = answers[output.request_id]
                if output.error is not None:
                    raise PagodaError(f"a measurement failed: {output.error}")
                if not output.finished:
                    held[output.request_id].append(output.memory.held)
                answer.peak_bytes = output.memory.peak
        for request_id, answer in answers.items():
            samples = held[request_id]
            answer.held_bytes = sum(samples) / len(samples) if samples else float(answer.peak_bytes)
            if notes := noted[request_id]:
                answer.noted_bytes, answer.looked_bytes = (fmean(values) for values in zip(*notes, strict=True))

    def _look_at_notes(self, noted: dict[str, list[tuple[float, float]]]) -> None:
        """What the policies of sequences that answer remember now, raw tokens not among it (they are KV), and what of
        it a step looks at.
        """
        running: Any = self.engine.scheduler.running.values()
        for sequence in running:
            if not sequence.plain and sequence.num_computed >= sequence.prompt_len:
                state, selection, fmt = sequence.policy_state, sequence.policy.selection, sequence.store.manager.fmt
                a_page = (
                    0.0 if selection is None else selection.looked_bytes(fmt.page_size, fmt.k_dim) / selection.reuse
                )
                found = state.num_bytes - state.tail_bytes, a_page * int(state.notes.sketched.sum())
                noted[sequence.group.request.request_id].append(found)


def _teacher(case: Case, logits: Tensor) -> Callable[[int, Tensor], int]:
    rows = {place: row for row, place in enumerate(case.scored)}

    def teach(num_output: int, row: Tensor) -> int:
        if num_output in rows:
            logits[rows[num_output]] = row.float().cpu()
        return case.forced_ids[min(num_output, len(case.forced_ids) - 1)]  # one step more, to see what is held then

    return teach
