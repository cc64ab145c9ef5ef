"""From real numbers to the integers of the packed formats: weights once, activations at every product."""

from __future__ import annotations

import torch
from torch import Tensor

from .packed import PackedWeight, lay_out
from .packed_bytes import BITS, GROUPS, LARGEST_FP8, NF4_LEVELS


def pack(
    weight: Tensor, format: str, *, group: int = 0, symmetric: bool = True, scale_dtype: torch.dtype = torch.bfloat16
) -> PackedWeight:
    """Quantizes by rounding to nearest, and packs: weight ``[outputs, inputs]`` or ``[experts, outputs, inputs]``.

    int8: scale max|w| / 127 of a row. int4: a scale per group of ``group`` inputs; symmetric q in -8..7 with the number
    of largest size at -8, or 0..15 with a zero point; ``scale_dtype`` bfloat16 or float32, and q is chosen for the
    rounded scale. int5: the same, -16..15 or 0..31. ternary: scale mean|w| of a matrix (BitNet b1.58, arXiv:2402.17764,
    section 2). fp8: scale max|w| / 448 of a row. nf4: scale max|w| of a group. fp32, bf16, fp16: a cast.
    Raises ConfigError for an unknown format or group.
    """
    if format == "int8":
        codes, scales = _int8_rows(weight.float())
        return lay_out(format, codes, scales)
    if format == "fp8":
        codes, scales = fp8_rows(weight.float())
        return lay_out(format, codes, scales)
    if format == "nf4":
        codes, scales = nearest_levels(_grouped(weight.float(), group))
        return lay_out(format, codes.flatten(-2)[..., : weight.shape[-1]], scales, group=group)
    if format in GROUPS:
        codes, scales, zeros = _in_groups(weight.float(), BITS[format], group, symmetric, scale_dtype)
        return lay_out(format, codes, scales, zeros, group=group)
    if format == "ternary":
        scale = weight.float().abs().mean(dim=(-2, -1), keepdim=True).clamp(min=1e-5)
        codes = (weight.float() / scale).round().clamp(-1, 1)
        return lay_out(format, codes.to(torch.int8), scale[..., 0].expand(weight.shape[:-1]))
    return lay_out(format, weight, group=group)


def _int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = weight.abs().amax(-1) / 127
    return (weight / scales.where(scales > 0, 1.0)[..., None]).round().to(torch.int8), scales


def fp8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 ``[..., inputs]`` -> float8_e4m3fn alike, and float32 scales ``[...]``: the largest becomes 448."""
    scales = weight.abs().amax(-1) / LARGEST_FP8
    steps = weight / scales.where(scales > 0, 1.0)[..., None]
    return steps.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn), scales


def nearest_levels(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 ``[..., group]`` -> uint8 numbers of nf4's levels, float32 scales ``[...]``: the largest becomes 1."""
    scales = groups.abs().amax(-1)
    levels = torch.tensor(NF4_LEVELS, device=groups.device)
    steps = groups / scales.where(scales > 0, 1.0)[..., None]
    return torch.bucketize(steps, (levels[1:] + levels[:-1]) / 2).to(torch.uint8), scales


def _in_groups(
    weight: Tensor, bits: int, group: int, symmetric: bool, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    groups, top, middle = _grouped(weight, group), 2**bits - 1, 2 ** (bits - 1)
    low, high = groups.amin(-1), groups.amax(-1)
    if symmetric:
        extreme = torch.where(-low > high, low, high)
        scales = (extreme / -middle).to(scale_dtype)
        step = scales.float().where(scales != 0, 1.0)[..., None]
        codes, zeros = (groups / step).round().clamp(-middle, middle - 1), None
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)  # zero stays exact
        scales = ((high - low) / top).to(scale_dtype)
        step = scales.float().where(scales != 0, 1.0)[..., None]
        points = (-low[..., None] / step).round().clamp(0, top)
        codes, zeros = ((groups / step).round() + points).clamp(0, top), points[..., 0].to(torch.uint8)
    return codes.flatten(-2)[..., : weight.shape[-1]].to(torch.int8), scales, zeros


def quantize_tokens(x: Tensor, group: int = 0) -> tuple[Tensor, Tensor]:
    """Activations to int8, symmetric, with a scale per token, or per token and group of ``group`` inputs.

    x ``[..., inputs]`` -> q int8 of that shape, in -127..127 (x * (127 / max|x|), rounded half to even), and float32
    scales max|x| / 127 ``[..., groups]``.
    """
    wide = x.float()
    groups = _grouped(wide, group or max(1, x.shape[-1]))
    largest = groups.abs().amax(-1)
    inverse = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)  # a number / tensor rounds twice
    codes = (groups * inverse[..., None]).round().clamp(-127, 127).to(torch.int8)
    return codes.flatten(-2)[..., : x.shape[-1]], largest / 127


def _grouped(x: Tensor, group: int) -> Tensor:
    """``[..., inputs]`` -> ``[..., groups, group]``, the last one padded with zeros."""
    inputs = x.shape[-1]
    return torch.nn.functional.pad(x, (0, -inputs % group)).unflatten(-1, (-1, group))
