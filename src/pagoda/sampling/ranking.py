"""Which of a request's sampled sequences are returned when more were sampled than asked for (best_of > n). No torch."""

from __future__ import annotations

from collections.abc import Sequence


def best_sequences(cumulative_logprobs: Sequence[float], n: int) -> list[int]:
    """Indices of the n sequences of highest cumulative logprob, best first, the earlier one among equals.

    The logprobs are the model's own (before temperature and filters), summed over the generated tokens.
    """
    order = sorted(range(len(cumulative_logprobs)), key=lambda index: (-cumulative_logprobs[index], index))
    return order[:n]
