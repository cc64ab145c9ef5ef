"""Repetition penalty of CTRL (https://arxiv.org/abs/1909.05858), with the sign rule that transformers and vLLM use."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def repetition_penalty(logits: Tensor, seen_ids: Iterable[int], penalty: float) -> Tensor:
    """logits [V] float32 -> [V]: each seen token's logit divided by the penalty if positive, multiplied if negative."""
    out = logits.clone()
    ids = torch.tensor(sorted(set(seen_ids)), dtype=torch.int64, device=logits.device)
    seen = out[ids]
    out[ids] = torch.where(seen < 0, seen * penalty, seen / penalty)
    return out
