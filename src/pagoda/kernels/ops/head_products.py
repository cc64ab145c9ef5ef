"""Products of each head with a small matrix of its own: latent attention's up-projections, absorbed (DeepSeek-V2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op


def head_products(x: Tensor, weight: Tensor, *, down: bool = False) -> Tensor:
    """x ``[T, H, C]``, weight ``[H, R, C]`` -> ``[T, H, R]``: ``weight[h] @ x[t, h]``.

    ``down``: x ``[T, H, R]`` -> ``[T, H, C]``, the same with the transposed matrices.
    """
    key = (x.dtype, weight.dtype, x.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(x.device.type, (x.dtype, weight.dtype)))
    out: Tensor = run(x, weight, down=down)
    return out


def reference(x: Tensor, weight: Tensor, *, down: bool = False) -> Tensor:
    return torch.einsum("thr,hrc->thc" if down else "thc,hrc->thr", x, weight)


_OP = Op("head_products", reference)
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (1.6e-2, 2e-2), torch.float16: (4e-3, 4e-3)}


def _case(
    make: Make, tokens: int = 7, heads: int = 3, rows: int = 20, columns: int = 36, down: bool = False
) -> dict[str, object]:
    inputs = rows if down else columns
    return {
        "x": make.normal(tokens, heads, inputs),
        "weight": make.normal(heads, rows, columns, scale=inputs**-0.5),
        "down": down,
    }


CASES = cross(
    "head_products", _case,
    {}, {"down": True}, {"tokens": 1}, {"tokens": 1, "down": True}, {"tokens": 0}, {"tokens": 37, "columns": 15},
    {"tokens": 21, "columns": 15, "down": True}, {"rows": 128, "columns": 512, "down": True},
    {"rows": 128, "columns": 512, "tokens": 5},
)  # fmt: skip
