"""Top-k: only the k likeliest tokens (https://arxiv.org/abs/1805.04833), ties with the k-th included."""

from __future__ import annotations

import math

from torch import Tensor


def top_k(logits: Tensor, k: int) -> Tensor:
    """logits [V] float32 -> [V] with all below the k-th largest at -inf; k <= 0 keeps everything."""
    if k <= 0 or k >= len(logits):
        return logits
    kth = logits.sort(descending=True).values[k - 1]
    return logits.masked_fill(logits < kth, -math.inf)
