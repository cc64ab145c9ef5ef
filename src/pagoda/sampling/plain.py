"""The plain twin of the fused chain: one row, one step after another. Tests compare the two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from .grammar import GrammarState
from .params import SamplingParams
from .state import end_ids
from .steps.closing import closing
from .steps.draw import draw
from .steps.logit_bias import logit_bias
from .steps.min_p import min_p
from .steps.min_tokens import min_tokens
from .steps.output_penalties import output_penalties
from .steps.repetition_penalty import repetition_penalty
from .steps.structure import structure
from .steps.temperature import temperature
from .steps.top_k import top_k
from .steps.top_p import top_p
from .steps.typical import typical
from .uniform import uniform


def edited_logits(
    logits: Tensor,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    output_ids: Sequence[int],
    eos_ids: Iterable[int],
    grammar: GrammarState | None = None,
) -> Tensor:
    """Steps 1 to 5, [V] -> [V]: bias, minimum length, penalties, structure, closing."""
    if params.logit_bias:
        logits = logit_bias(logits, params.logit_bias)
    if len(output_ids) < params.min_tokens:
        logits = min_tokens(logits, end_ids(params, eos_ids))
    if params.repetition_penalty != 1.0:
        logits = repetition_penalty(logits, [*prompt_ids, *output_ids], params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        logits = output_penalties(logits, output_ids, params.frequency_penalty, params.presence_penalty)
    logits = logits if grammar is None else structure(logits, grammar.mask())
    return logits if params.closing is None else closing(logits, params.closing, output_ids)


def filtered_logits(logits: Tensor, params: SamplingParams) -> Tensor:
    """Steps 6 to 10, [V] -> [V]: temperature and the filters. Not for greedy params."""
    logits = temperature(logits, params.temperature)
    logits = top_k(logits, params.top_k)
    logits = top_p(logits, params.top_p)
    logits = min_p(logits, params.min_p)
    return typical(logits, params.typical_p)


def sample_one(
    logits: Tensor,
    params: SamplingParams,
    *,
    prompt_ids: Sequence[int] = (),
    output_ids: Sequence[int] = (),
    eos_ids: Iterable[int] = (),
    seed: int = 0,
    index: int = 0,
    grammar: GrammarState | None = None,
) -> int:
    """All steps over one row of logits, float32 [V] -> the chosen token id."""
    logits = edited_logits(logits, params, prompt_ids, output_ids, eos_ids, grammar)
    if params.is_greedy:
        return int(logits.argmax())
    return draw(filtered_logits(logits, params), uniform(seed, index, len(output_ids)))
