"""Bias: a number added to the logit of each named token; -inf forbids it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def logit_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """logits [V] float32 -> [V]."""
    out = logits.clone()
    for token_id, value in bias.items():
        out[token_id] += value
    return out
