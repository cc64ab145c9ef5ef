"""Minimum length: the ids that would end the sequence are forbidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def min_tokens(logits: Tensor, end_ids: Sequence[int]) -> Tensor:
    """logits [V] float32 -> [V] with ``end_ids`` at -inf. Called only while the output is too short."""
    out = logits.clone()
    out[list(end_ids)] = -math.inf
    return out
