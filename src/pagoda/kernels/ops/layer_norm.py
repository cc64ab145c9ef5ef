"""Layer normalization (Ba et al. 2016, arXiv:1607.06450)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension, in float32, rounded once at the end.

    x ``[..., dim]``, weight and bias ``[dim]`` or None; returns x's shape and dtype.
    """
    key = (x.dtype, x.device.type, weight is None, bias is None)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(x, weight, bias))
    out: Tensor = run(x, weight, bias, eps)
    return out


def _needs(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Needs:
    options = {"no_weight": weight is None, "no_bias": bias is None}
    return Needs(x.device.type, (x.dtype,), (x.shape[-1],), frozenset(name for name, on in options.items() if on))


def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


_OP = Op("layer_norm", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1.6e-2, 1e-2), torch.float16: (2e-3, 2e-3)}


def _case(make: Make, shape: tuple[int, ...] = (5, 64), weight: bool = True, bias: bool = True) -> dict[str, object]:
    dim = shape[-1]
    parts = {"weight": make.normal(dim) if weight else None, "bias": make.normal(dim, scale=0.5) if bias else None}
    return {"x": make.normal(*shape), **parts, "eps": 1e-5}


CASES = cross(
    "layer_norm", _case,
    {}, {"shape": (1, 7)}, {"shape": (0, 64)}, {"shape": (3, 2, 48)}, {"bias": False}, {"weight": False, "bias": False},
)  # fmt: skip
