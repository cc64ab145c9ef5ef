"""Beam search over the paged cache: beams are sequences that fork and end; the books are kept by ``sampling.beam``.

The beams of a request move together: each offers its likeliest continuations once its newest token is computed, and
when the last has done so, survivors go on and the others give their pages back. A beam that was preempted just offers
later; until then its siblings have nothing to compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..core.types import FinishReason
from ..models.tokenizer import Tokenizer
from ..sampling.beam import Beam, BeamSearch, Hypothesis
from ..sampling.params import SamplingParams
from ..sampling.sampler import Sampler
from .outputs import Completion

if TYPE_CHECKING:
    from .advance import Advance
    from .sequence import RequestState, Sequence

Candidates = list[tuple[int, float]]


class BeamGroup:
    """The live beams of one request, in the order of ``BeamSearch``."""

    def __init__(self, group: RequestState, advance: Advance, end_ids: tuple[int, ...]) -> None:
        params = group.request.params
        assert params.beam_width is not None
        self._group, self._advance = group, advance
        self._search = BeamSearch(
            params.beam_width,
            end_ids=end_ids,
            stop_token_ids=params.stop_token_ids or (),
            max_tokens=group.rule.limit,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
        )
        self._beams: list[Sequence] = []
        self._offers: dict[int, Candidates] = {}

    def offer(self, sequence: Sequence, logits: Tensor) -> None:
        """``logits`` float32 [vocab]: what may follow the sequence. When every beam has offered, the search moves on.

        The model's log-probabilities with the request's edits on top (penalties, min_tokens), as transformers does it.
        """
        if not self._beams:
            self._beams = [sequence]
        (best,) = Sampler().beam_candidates(logits[None], [sequence.sample_state], self._search.num_candidates)
        self._offers[sequence.seq_id] = best
        if all(beam.seq_id in self._offers for beam in self._beams):
            self._move_on()

    def answers(self, tokenizer: Tokenizer) -> list[Completion]:
        """The best finished hypotheses; while there are none, one empty answer. An abort or error shows in all."""
        cut_short = (FinishReason.ABORT, FinishReason.ERROR)
        reasons = [s.finish_reason for s in self._group.sequences if s.finish_reason in cut_short]
        params = self._group.request.params
        best = self._search.best(params.n)
        if not best:
            return [Completion(0, "", [], finish_reason=reasons[0] if reasons else None)]
        return [
            Completion(
                index,
                _text(tokenizer, hypothesis, params),
                hypothesis.token_ids,
                finish_reason=reasons[0] if reasons else hypothesis.finish.reason,
                stop_reason=hypothesis.finish.stop,
                cumulative_logprob=hypothesis.cumulative_logprob,
            )
            for index, hypothesis in enumerate(best)
        ]

    def _move_on(self) -> None:
        offers, self._offers = [self._offers[beam.seq_id] for beam in self._beams], {}
        survivors = self._search.step(offers)
        if self._search.done:
            self._end(self._beams)
            return
        before, children = self._beams, self._fork(survivors)
        self._beams = children
        self._end([beam for beam in before if beam not in children])
        for child, beam in zip(children, survivors, strict=True):
            child.tokens.append(beam.token_id)
            child.sample_state.accept(beam.token_id)
            child.cumulative_logprob = beam.cumulative_logprob
            self._advance.wake(child)

    def _fork(self, survivors: list[Beam]) -> list[Sequence]:
        """One sequence per survivor: the first child of a beam takes the beam itself, later ones fork off it.

        Forks come first, all from committed tokens only; nobody writes before all of them are made.
        """
        children, taken = [], set()
        for beam in survivors:
            parent = self._beams[beam.parent]
            if beam.parent in taken:
                child = self._advance.fork(parent, len(self._group.sequences))
            else:
                child = parent
                taken.add(beam.parent)
            children.append(child)
        return children

    def _end(self, beams: list[Sequence]) -> None:
        for beam in beams:
            self._advance.end(beam, FinishReason.STOP)


def _text(tokenizer: Tokenizer, hypothesis: Hypothesis, params: SamplingParams) -> str:
    """The text of a hypothesis, without the token that ended it unless the request wants to see that."""
    ids = hypothesis.token_ids
    if hypothesis.finish.reason is FinishReason.STOP and not params.include_stop_in_output:
        ids = ids[:-1]
    return tokenizer.decode(ids, params.skip_special_tokens)
