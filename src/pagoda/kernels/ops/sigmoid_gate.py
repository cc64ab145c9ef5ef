"""One number for a token, by which another layer's answer counts (Qwen2-MoE's shared expert)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op


def sigmoid_gate(logits: Tensor, y: Tensor) -> Tensor:
    """``y * sigmoid(logits)``, rounded to y's dtype after each step: logits float32 ``[T, 1]``, y ``[T, width]``."""
    key = (logits.dtype, y.dtype, y.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(y.device.type, (y.dtype,)))
    out: Tensor = run(logits, y)
    return out


def reference(logits: Tensor, y: Tensor) -> Tensor:
    return logits.sigmoid().to(y.dtype) * y


_OP = Op("sigmoid_gate", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (1.6e-2, 1e-2), torch.float16: (4e-3, 4e-3)}


def _case(make: Make, tokens: int, width: int = 33) -> dict[str, object]:
    return {"logits": make.normal(tokens, 1, dtype=torch.float32), "y": make.normal(tokens, width)}


CASES = cross("sigmoid_gate", _case, {"tokens": 1}, {"tokens": 9}, {"tokens": 0}, {"tokens": 5, "width": 96})
