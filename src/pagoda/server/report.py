"""Usage and timings of a request as its answer shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.types import FinishReason
from ..engine.outputs import RequestOutput

FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
"""Other reasons end in an error and are never shown as a finish."""


def usage_of(outputs: Sequence[RequestOutput], *, spare_tokens: int = 0) -> dict[str, Any]:
    """OpenAI's usage over all engine requests of one HTTP request; ``spare_tokens`` were computed but not shown."""
    prompt = sum(output.usage.prompt_tokens for output in outputs)
    completion = sum(output.usage.completion_tokens for output in outputs) - spare_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(output.usage.cached_tokens for output in outputs)},
    }


def metrics_of(outputs: Sequence[RequestOutput], held_bytes: int = 0) -> dict[str, Any]:
    """Timings from the first arrival to the last end; ``held_bytes`` of KV stay pinned after the answer."""
    timings = [output.timing for output in outputs]
    arrival = min(timing.arrival for timing in timings)
    scheduled = _least(timing.first_scheduled for timing in timings)
    first = _least(timing.first_token for timing in timings)
    ends = [timing.finished for timing in timings if timing.finished is not None]
    end = max(ends) if ends else None
    longest = max((len(answer.token_ids) for output in outputs for answer in output.outputs), default=0)
    per_token = None if first is None or end is None or longest < 2 else (end - first) / (longest - 1)
    return {
        "queue_seconds": _between(arrival, scheduled),
        "prefill_seconds": _between(scheduled, first),
        "first_token_seconds": _between(arrival, first),
        "per_token_seconds": per_token if per_token is None else round(per_token, 6),
        "total_seconds": _between(arrival, end),
        "kv_bytes_peak": sum(output.memory.peak for output in outputs),
        "kv_bytes_held": held_bytes,
        "preemptions": sum(output.num_preemptions for output in outputs),
    }


def _least(times: Any) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 6)
