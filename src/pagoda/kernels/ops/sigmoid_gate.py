"""One number for a token, by which another layer's answer counts (Qwen2-MoE's shared expert)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..case import Make, cross
from ..dispatch import Needs, Op


def sigmoid_gate(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    """``y * sigmoid(x @ weight.T)``, rounded to their dtype after each step.

    x ``[T, hidden]``, weight ``[1, hidden]``, y ``[T, width]``; returns y's shape.
    """
    key = (x.dtype, weight.dtype, y.dtype, x.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(x.device.type, (x.dtype, weight.dtype, y.dtype)))
    out: Tensor = run(x, weight, y)
    return out


def reference(x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
    return linear(x, weight).sigmoid() * y


_OP = Op("sigmoid_gate", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (1.6e-2, 1e-2), torch.float16: (4e-3, 4e-3)}


def _case(make: Make, tokens: int, hidden: int = 48, width: int = 33) -> dict[str, object]:
    return {
        "x": make.normal(tokens, hidden), "weight": make.normal(1, hidden, scale=hidden**-0.5),
        "y": make.normal(tokens, width),
    }  # fmt: skip


CASES = cross(
    "sigmoid_gate", _case, {"tokens": 1}, {"tokens": 9, "hidden": 37}, {"tokens": 0}, {"tokens": 5, "width": 96}
)
