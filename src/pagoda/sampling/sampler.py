"""The sampler: logits of a step in, one chosen token per sequence out. With the state, the engine's only door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .chain import NO_TOKEN, choose
from .edits import apply_edits
from .logprobs import token_logprobs
from .state import SampleState

NO_TOKEN_ERROR = (
    "no token is possible: the logits hold NaN or infinity, or logit_bias, min_tokens and structured forbid them all"
)


@dataclass(slots=True)
class Sampled:
    """One sequence's next token. ``logprob``, ``rank`` and ``top`` only where the params ask or best_of ranks by it.

    ``error`` is set, and the token -1, when no token is possible; the other rows of the step are not touched by it.
    """

    token_id: int
    logprob: float | None = None
    rank: int | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    error: str | None = None


class Sampler:
    """Stateless: everything about a sequence is in its SampleState."""

    def sample(self, logits: Tensor, states: Sequence[SampleState]) -> list[Sampled]:
        """logits [N, V] float32 on any device, row i for states[i]; **edited in place**: scratch afterwards.

        The caller then gives each token that it keeps to ``states[i].accept``. Same tokens for a state whatever the
        other rows are.
        """
        if not states:
            return []
        reported = [row for row, state in enumerate(states) if state.params.needs_logprobs]
        raw = self._raw_rows(logits, states, reported)
        apply_edits(logits, states)
        chosen = choose(logits, states)
        out = [self._sampled(token_id, state) for token_id, state in zip(chosen, states, strict=True)]
        if raw is not None:
            self._report(raw, reported, states, out)
        return out

    def beam_candidates(
        self, logits: Tensor, states: Sequence[SampleState], count: int
    ) -> list[list[tuple[int, float]]]:
        """The ``count`` likeliest continuations (id, logprob) of each beam, best first, lower ids first among equals.

        logits [B, V] float32, left as they are. As in transformers, bias, minimum length and penalties act on the
        log-probabilities, which are not normalized again.
        """
        log_probs = logits.log_softmax(-1)
        apply_edits(log_probs, states)
        values, ids = log_probs.topk(min(count, logits.shape[1]), dim=-1)
        rows = zip(ids.tolist(), values.tolist(), strict=True)
        return [sorted(zip(*row, strict=True), key=lambda pair: (-pair[1], pair[0])) for row in rows]

    @staticmethod
    def _raw_rows(logits: Tensor, states: Sequence[SampleState], rows: list[int]) -> Tensor | None:
        """The unmodified logits of the rows that are reported on; a copy only if an edit is coming."""
        if not rows:
            return None
        if len(rows) < len(states):
            return logits[torch.tensor(rows, device=logits.device)]
        return logits.clone() if any(states[row].is_edited for row in rows) else logits

    @staticmethod
    def _sampled(token_id: int, state: SampleState) -> Sampled:
        if token_id != NO_TOKEN:
            return Sampled(token_id)
        failed = state.grammar.error if state.grammar is not None else None
        return Sampled(token_id, error=f"structured output failed: {failed}" if failed else NO_TOKEN_ERROR)

    @staticmethod
    def _report(raw: Tensor, rows: list[int], states: Sequence[SampleState], out: list[Sampled]) -> None:
        token_ids = [max(out[row].token_id, 0) for row in rows]
        num_top = [states[row].params.logprobs or 0 for row in rows]
        for row, entry in zip(rows, token_logprobs(raw, token_ids, num_top), strict=True):
            if out[row].error is None:
                out[row].logprob, out[row].rank, out[row].top = entry.logprob, entry.rank, entry.top
