"""From a request's state to the output that its client sees."""

from __future__ import annotations

from ..models.tokenizer import Tokenizer
from ..sampling.ranking import best_sequences
from .outputs import Completion, KVMemory, RequestOutput, Usage
from .sequence import RequestState, Sequence


def output_of(group: RequestState, tokenizer: Tokenizer) -> RequestOutput:
    """A snapshot; its lists are copies. Text that may still turn into a stop string is not in it, and
    text that decides nothing is not made yet (``RequestOutput.tell``).
    """
    request = group.request
    answers = group.beam.answers(tokenizer) if group.beam is not None else _answers(group)
    return RequestOutput(
        request_id=request.request_id,
        prompt=request.prompt,
        prompt_token_ids=request.prompt_ids,
        outputs=answers,
        usage=Usage(group.prompt_len, sum(len(answer.token_ids) for answer in answers), group.cached_tokens),
        memory=KVMemory(peak=group.peak_kv_bytes, held=0 if group.finished else group.held_bytes),
        timing=group.timing,
        finished=group.finished,
        error=group.error,
        no_room=group.no_room,
        prompt_logprobs=group.prompt_logprobs,
        num_preemptions=group.num_preemptions,
        embedding=group.embedding,
    )


def _answers(group: RequestState) -> list[Completion]:
    """All answers while they run; at the end the ``n`` likeliest of ``best_of``."""
    params, sequences = group.request.params, group.sequences
    if params.best_of is not None and params.best_of > params.n and group.finished:
        best = best_sequences([sequence.cumulative_logprob for sequence in sequences], params.n)
        return [_completion(sequences[chosen], index) for index, chosen in enumerate(best)]
    return [_completion(sequence, sequence.index) for sequence in sequences[: params.n]]


def _completion(sequence: Sequence, index: int) -> Completion:
    params, stream = sequence.group.request.params, sequence.text
    return Completion(
        index=index,
        text=stream.visible if stream.decides else "",
        token_ids=sequence.output_ids,
        delta=stream.take_delta() if stream.decides else "",
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
        cumulative_logprob=sequence.cumulative_logprob if params.needs_logprobs else None,
        logprobs=list(sequence.logprobs) if params.logprobs is not None else None,
        untold=None if stream.decides else stream,
        num_shown=sequence.num_shown,
    )
