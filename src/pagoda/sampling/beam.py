"""The books of a beam search: which beams go on with which token, which are finished, when it is over. No torch.

Same results as ``generate(num_beams=…, do_sample=False)`` of transformers 5, whose rules these are:

* of all beams' continuations the best ``width`` may finish; continuations that do not end fill the next beams;
* a finished hypothesis is worth its cumulative logprob / length**length_penalty, the end token counted in the length
  and the prompt not; the best ``width`` are kept;
* ``early_stopping=True``: over when ``width`` are finished. ``False``: over when the best beam, at its present length,
  is not worth more than the worst of them. ``"never"``: likewise, but at the length that flatters the beam most.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pagoda.core.types import FinishReason

from .finish import Finish


@dataclass(frozen=True, slots=True)
class _Node:
    """A beam's last token and the beam before it: beams share their past as a tree."""

    parent: _Node | None
    token_id: int

    def token_ids(self) -> list[int]:
        ids: list[int] = []
        node: _Node | None = self
        while node is not None:
            ids.append(node.token_id)
            node = node.parent
        return ids[::-1]


@dataclass(frozen=True, slots=True)
class Beam:
    """A live beam after a step: it continues beam number ``parent`` of the step before with ``token_id``."""

    parent: int
    token_id: int
    cumulative_logprob: float
    node: _Node


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished sequence: its generated tokens (the end token included) and what it is worth."""

    token_ids: list[int]
    score: float
    cumulative_logprob: float
    finish: Finish


class BeamSearch:
    """One request's search. Begins with one beam (the prompt); `step` until `done`; then `best`."""

    def __init__(
        self,
        width: int,
        *,
        end_ids: Iterable[int],
        max_tokens: int,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        stop_token_ids: Iterable[int] = (),
        limit: Finish | None = None,
    ) -> None:
        """``end_ids`` all ids that end a sequence, ``stop_token_ids`` those of them that the request named (for the
        finish); ``limit`` the finish of a hypothesis cut at ``max_tokens``."""
        self.width, self.max_tokens = width, max_tokens
        self.length_penalty, self.early_stopping = length_penalty, early_stopping
        self._end_ids, self._stop_ids = frozenset(end_ids), frozenset(stop_token_ids)
        self._limit = limit or Finish(FinishReason.LENGTH, "max_tokens")
        self._beams: list[Beam] | None = None
        self._finished: list[Hypothesis] = []
        self.num_tokens = 0
        self.done = False

    @property
    def num_candidates(self) -> int:
        """How many of its likeliest continuations each beam must offer: enough that ``width`` of all do not end."""
        return max(2, 1 + len(self._end_ids)) * self.width

    def step(self, candidates: Sequence[Sequence[tuple[int, float]]]) -> list[Beam]:
        """Takes (token id, logprob) continuations of each live beam; returns the next beams, best first.

        The first call has one beam's candidates, the prompt's. Fewer than ``width`` beams come back only where the
        vocabulary has no more; none when the search is over.
        """
        assert not self.done, "the search is over"
        self.num_tokens += 1
        ranked = self._ranked(candidates)
        ends = [self._end_of(beam.token_id) for beam in ranked]
        self._finish(list(zip(ranked, ends, strict=True))[: self.width])
        self._beams = [beam for beam, end in zip(ranked, ends, strict=True) if end is None][: self.width]
        self.done = self._is_over(self._beams)
        return [] if self.done else self._beams

    def best(self, n: int) -> list[Hypothesis]:
        """The n best finished hypotheses, best first."""
        return self._finished[:n]

    def _ranked(self, candidates: Sequence[Sequence[tuple[int, float]]]) -> list[Beam]:
        """The best continuations of all beams, best first."""
        before = self._beams
        assert len(candidates) == (1 if before is None else len(before)), "one list of candidates per live beam"
        pool = [
            (-logprob - (before[parent].cumulative_logprob if before else 0.0), parent, token_id)
            for parent, offered in enumerate(candidates)
            for token_id, logprob in offered
            if logprob > -math.inf
        ]
        return [
            Beam(parent, token_id, -cost, _Node(before[parent].node if before else None, token_id))
            for cost, parent, token_id in heapq.nsmallest(self.num_candidates, pool)
        ]

    def _end_of(self, token_id: int) -> Finish | None:
        if token_id in self._stop_ids:
            return Finish(FinishReason.STOP, "stop_token", token_id)
        if token_id in self._end_ids:
            return Finish(FinishReason.STOP, "eos")
        return self._limit if self.num_tokens >= self.max_tokens else None

    def _finish(self, top: Sequence[tuple[Beam, Finish | None]]) -> None:
        """Adds those of the best continuations that end; keeps the ``width`` best of all finished."""
        for beam, end in top:
            if end is not None:
                score = self._worth(beam.cumulative_logprob, self.num_tokens)
                self._finished.append(Hypothesis(beam.node.token_ids(), score, beam.cumulative_logprob, end))
        self._finished.sort(key=lambda hypothesis: -hypothesis.score)  # stable: the earlier one among equals
        del self._finished[self.width :]

    def _is_over(self, beams: Sequence[Beam]) -> bool:
        if not beams:
            return True
        if len(self._finished) < self.width:
            return False
        if self.early_stopping is True:
            return True
        flattering = self.early_stopping == "never" and self.length_penalty > 0.0
        length = self.max_tokens if flattering else self.num_tokens
        return self._worth(beams[0].cumulative_logprob, length) <= self._finished[-1].score

    def _worth(self, cumulative_logprob: float, length: int) -> float:
        return cumulative_logprob / math.pow(length, self.length_penalty)
