"""Min-p (https://arxiv.org/abs/2407.01082): tokens at least a fraction of the likeliest one's probability."""

from __future__ import annotations

import math

from torch import Tensor


def min_p(logits: Tensor, fraction: float) -> Tensor:
    """logits [V] float32 -> [V] with tokens less likely than ``fraction`` times the likeliest at -inf."""
    if fraction <= 0.0:
        return logits
    return logits.masked_fill(logits < logits.max() + math.log(fraction), -math.inf)
