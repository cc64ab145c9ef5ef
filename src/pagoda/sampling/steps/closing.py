"""Closing: when the mark has not come in time, its next token is the only one that is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..closing import Closing


def closing(logits: Tensor, wanted: Closing, output_ids: Sequence[int]) -> Tensor:
    """logits [V] float32 -> [V]; as they are while there is time, or once the mark has come."""
    mark, output = list(wanted.ids), list(output_ids)
    began = output[: len(wanted.begins)] == list(wanted.begins)
    has_come = any(output[start : start + len(mark)] == mark for start in range(len(output)))
    if len(output) < wanted.after or not began or has_come:
        return logits
    num = next(n for n in range(len(mark) - 1, -1, -1) if n == 0 or output[-n:] == mark[:n])
    out = torch.full_like(logits, -math.inf)
    out[mark[num]] = 0.0
    return out
