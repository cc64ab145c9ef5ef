"""Structure: tokens that the grammar does not allow next are forbidden."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def structure(logits: Tensor, mask: np.ndarray) -> Tensor:
    """logits [V] float32, mask uint8 bits of allowed tokens, lowest first -> [V]; ids beyond the mask are forbidden."""
    out = torch.full_like(logits, -math.inf)
    for token_id in range(min(len(logits), 8 * len(mask))):
        if mask[token_id // 8] >> (token_id % 8) & 1:
            out[token_id] = logits[token_id]
    return out
