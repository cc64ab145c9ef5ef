"""Root-mean-square normalization (Zhang & Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..case import Make, cross
from ..dispatch import Needs, Op


def rms_norm(x: Tensor, weight: Tensor | None, eps: float, *, offset: float = 0.0, fp32_weight: bool = False) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * (weight + offset)`` over the last dimension, computed in float32.

    x ``[..., dim]``, weight ``[dim]`` or None; returns x's shape and dtype. Where the result is rounded to x's dtype
    decides the last bit, and families differ:

    * default: before the weight (llama, mistral, qwen, …);
    * ``fp32_weight``: after the weight (olmo2, gpt_oss);
    * ``offset`` not 0: after the weight ``offset + weight``, added in float32 (gemma: offset 1).
    """
    key = (x.dtype, x.device.type, None if weight is None else weight.dtype, fp32_weight, offset != 0.0)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(x, weight, fp32_weight, offset))
    out: Tensor = run(x, weight, eps, offset=offset, fp32_weight=fp32_weight)
    return out


def rounds_first(offset: float, fp32_weight: bool) -> bool:
    """Whether the result is rounded to x's dtype before the weight is applied."""
    return offset == 0.0 and not fp32_weight


def _needs(x: Tensor, weight: Tensor | None, fp32_weight: bool, offset: float) -> Needs:
    options = {"no_weight": weight is None, "fp32_weight": fp32_weight, "offset": offset != 0.0}
    dtypes = (x.dtype,) if weight is None else (x.dtype, weight.dtype)
    return Needs(x.device.type, dtypes, (x.shape[-1],), frozenset(name for name, on in options.items() if on))


def reference(
    x: Tensor, weight: Tensor | None, eps: float, *, offset: float = 0.0, fp32_weight: bool = False
) -> Tensor:
    # torch's fused op works in float32 and rounds after the weight: 5 us less a call than the steps written out.
    shape = x.shape[-1:]
    if weight is None:
        return functional.rms_norm(x, shape, None, eps)
    if offset == 0.0 and weight.dtype == x.dtype and (fp32_weight or x.dtype == torch.float32):
        return functional.rms_norm(x, shape, weight, eps)
    if offset == 0.0 and not fp32_weight:
        return (weight * functional.rms_norm(x, shape, None, eps)).to(x.dtype)
    return (functional.rms_norm(x.float(), shape, None, eps) * (offset + weight.float())).to(x.dtype)


_OP = Op("rms_norm", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (1.6e-2, 1e-2), torch.float16: (2e-3, 1e-3)}


def _case(make: Make, shape: tuple[int, ...] = (5, 64), weight: bool = True, **options: object) -> dict[str, object]:
    return {"x": make.normal(*shape), "weight": make.normal(shape[-1]) if weight else None, "eps": 1e-6, **options}


CASES = cross(
    "rms_norm", _case,
    {}, {"shape": (1, 7)}, {"shape": (0, 64)}, {"shape": (3, 2, 48)}, {"shape": (2, 896)},
    {"weight": False}, {"offset": 1.0}, {"fp32_weight": True},
)  # fmt: skip
