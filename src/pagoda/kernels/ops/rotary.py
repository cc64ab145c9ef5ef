"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), applied to queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ..case import Make, cross
from ..dispatch import Needs, Op


def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, rotary_dim: int | None = None
) -> tuple[Tensor, Tensor]:
    """Turns pairs of elements of every head by the token's angles; returns new q and k in their dtypes.

    q ``[T, Hq, D]``, k ``[T, Hkv, D]``, cos and sin ``[T, rotary_dim / 2]``: one angle a pair, scaled already.
    Pair i is elements (i, i + rotary_dim / 2), or (2i, 2i + 1) when ``interleaved`` (GPT-J, Cohere, DeepSeek).
    ``rotary_dim`` (default D): only the first that many elements turn, the others pass through.

    The arithmetic is in the wider dtype of q and cos: cos in q's dtype rounds as most families of transformers do,
    cos in float32 as Cohere does. Raises ConfigError when cos does not fit rotary_dim.
    """
    key = (q.dtype, cos.dtype, q.device.type, interleaved, rotary_dim, q.shape[-1], cos.shape[-1])
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(q, cos, interleaved, rotary_dim))
    out: tuple[Tensor, Tensor] = run(q, k, cos, sin, interleaved=interleaved, rotary_dim=rotary_dim)
    return out


def _needs(q: Tensor, cos: Tensor, interleaved: bool, rotary_dim: int | None) -> Needs:
    dim = q.shape[-1]
    turned = dim if rotary_dim is None else rotary_dim
    if cos.shape[-1] * 2 != turned or turned > dim:
        raise ConfigError(
            f"rotary_dim {turned} with {cos.shape[-1]} angles and heads of {dim}; needs rotary_dim/2 angles"
        )
    options = {"interleaved": interleaved, "partial": turned != dim}
    return Needs(q.device.type, (q.dtype, cos.dtype), (dim,), frozenset(name for name, on in options.items() if on))


def reference(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, rotary_dim: int | None = None
) -> tuple[Tensor, Tensor]:
    dim = q.shape[-1]
    turned = dim if rotary_dim is None else rotary_dim
    both = torch.cat((q, k), dim=1)  # q and k in one go: half the calls
    x = both[..., :turned]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    halves = first * cos - second * sin, second * cos + first * sin
    out = torch.stack(halves, dim=-1).flatten(-2) if interleaved else torch.cat(halves, dim=-1)
    out = out.to(q.dtype)
    if turned < dim:
        out = torch.cat((out, both[..., turned:]), dim=-1)
    return out[:, : q.shape[1]], out[:, q.shape[1] :]


_OP = Op("rotary", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (1.6e-2, 1e-2), torch.float16: (2e-3, 2e-3)}


def _case(
    make: Make, tokens: int = 5, heads: tuple[int, int] = (4, 2), dim: int = 16, rotary_dim: int | None = None,
    interleaved: bool = False, wide_angles: bool = False,
) -> dict[str, object]:  # fmt: skip
    angles = make.normal(tokens, (rotary_dim or dim) // 2, scale=3.0, dtype=torch.float32)
    dtype = torch.float32 if wide_angles else make.dtype
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    q, k = make.normal(tokens, heads[0], dim), make.normal(tokens, heads[1], dim)
    return {"q": q, "k": k, "cos": cos, "sin": sin, "interleaved": interleaved, "rotary_dim": rotary_dim}


CASES = cross(
    "rotary", _case,
    {}, {"tokens": 1}, {"tokens": 0}, {"heads": (14, 2), "dim": 64}, {"rotary_dim": 4}, {"interleaved": True},
    {"interleaved": True, "rotary_dim": 8}, {"wide_angles": True},
)  # fmt: skip
