"""Frequency and presence penalties as in the OpenAI API: over generated tokens only, per occurrence and once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor


def output_penalties(logits: Tensor, output_ids: Iterable[int], frequency: float, presence: float) -> Tensor:
    """logits [V] float32 -> [V], less ``frequency * count + presence`` for each token that was generated."""
    out = logits.clone()
    for token_id, count in Counter(output_ids).items():
        out[token_id] -= frequency * count + presence
    return out
