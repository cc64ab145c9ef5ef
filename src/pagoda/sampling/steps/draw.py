"""The draw: the token at which the cumulative distribution, in the order of token ids, passes a uniform number."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(logits: Tensor, u: float) -> int:
    """logits [V] float32 with at least one finite, u in (0, 1) -> token id; a forbidden token is never drawn."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    target = torch.tensor([u], dtype=torch.float64, device=logits.device) * cumulative[-1]
    token_id = int(torch.searchsorted(cumulative, target, right=True))
    return min(token_id, int(logits.isfinite().nonzero()[-1]))
