"""Top-p, nucleus sampling (https://arxiv.org/abs/1904.09751): the smallest set of likeliest tokens with mass >= p."""

from __future__ import annotations

import math

from torch import Tensor


def top_p(logits: Tensor, p: float) -> Tensor:
    """logits [V] float32 -> [V]: a token stays if the mass of strictly likelier ones is below p; the likeliest always.

    Masses are summed in float64: a float32 sum over 150 000 tokens is off by more than a rare token's probability.
    """
    if p >= 1.0:
        return logits
    ranked = logits.sort(descending=True).values
    probs = ranked.double().softmax(-1)
    num_kept = max(1, int(((probs.cumsum(-1) - probs) < p).sum()))
    return logits.masked_fill(logits < ranked[num_kept - 1], -math.inf)
