"""Small codes in bytes, and rows in groups: what several formats share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...kernels.packed_bytes import packed_width as packed_width

if TYPE_CHECKING:
    from torch import Tensor


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """uint8 ``[rows, cols]`` of values below ``2**bits`` -> ``[rows, packed_width]``; the first column is lowest.

    ``bits`` is 1, 2 or 4, or 5: then six columns fill 32 bits, the even ones the lower half (`kernels.packed`). Columns
    that fill the last byte, or 32 bits, are zero.
    """
    import torch
    from torch.nn.functional import pad

    if bits == 5:
        from ...kernels.packed import pack_words

        fields = pad(codes, (0, -codes.shape[1] % 6)).reshape(codes.shape[0], -1, 6)
        return pack_words(fields, "int5").view(torch.uint8)
    per_byte = 8 // bits
    rows, cols = codes.shape
    padded = pad(codes, (0, -cols % per_byte)).reshape(rows, -1, per_byte)
    packed = padded[..., 0].clone()
    for i in range(1, per_byte):
        packed |= padded[..., i] << (bits * i)
    return packed


def unpack_bits(packed: Tensor, bits: int, cols: int) -> Tensor:
    """The way back: uint8 ``[rows, cols]``."""
    import torch

    if bits == 5:
        from ...kernels.packed import unpack_words

        words = packed.clone(memory_format=torch.contiguous_format).view(torch.int32)  # in a file they lie at any byte
        return unpack_words(words, "int5").flatten(1)[:, :cols]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    values = (packed[..., None] >> shifts) & (2**bits - 1)
    return values.reshape(packed.shape[0], -1)[:, :cols]


def grouped(weight: Tensor, group: int) -> Tensor:
    """``[rows, cols]`` -> ``[rows, groups, group]``, the last group filled with zeros."""
    from torch.nn.functional import pad

    rows, cols = weight.shape
    return pad(weight, (0, -cols % group)).reshape(rows, -1, group)


def ungrouped(weight: Tensor, cols: int) -> Tensor:
    """``[rows, groups, group]`` -> ``[rows, cols]``."""
    return weight.flatten(1)[:, :cols]


def nonzero(scale: Tensor) -> Tensor:
    """Scales to divide by: all-zero groups get 1."""
    import torch

    return torch.where(scale == 0, torch.ones_like(scale), scale)
