"""Locally typical sampling (https://arxiv.org/abs/2202.00666): tokens whose surprise is nearest to the entropy."""

from __future__ import annotations

import math

from torch import Tensor


def typical(logits: Tensor, mass: float) -> Tensor:
    """logits [V] float32 -> [V]: the most typical tokens whose mass reaches ``mass``, ties with the last included."""
    if mass >= 1.0:
        return logits
    log_probs = logits.double().log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum()
    distance, order = (-log_probs - entropy).abs().sort()
    ranked = probs[order]
    num_kept = max(1, int(((ranked.cumsum(-1) - ranked) < mass).sum()))
    return logits.masked_fill((-log_probs - entropy).abs() > distance[num_kept - 1], -math.inf)
