"""Plain rows to codes by the C++ extension, in one pass on all cores; the formats' ``quantize`` is the plain twin."""

from __future__ import annotations

import torch
from torch import Tensor

from ._optional import extension
from .packed_bytes import row_bytes

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/dtype.hpp numbers them alike
MAX_GROUP = 128  # of csrc/quantize.cpp


def can_quantize(rows: Tensor) -> bool:
    """Whether the extension takes these rows ``[rows, cols]`` as they are."""
    return rows.dtype in _DTYPES and rows.device.type == "cpu" and rows.is_contiguous() and extension() is not None


def to_int8(rows: Tensor, codes: Tensor, scales: Tensor, num_threads: int = 1) -> bool:
    """rows ``[n, cols]`` -> codes int8 ``[n, cols]``, scales float32 ``[n]``, written in place.

    False, with codes of no meaning, where a value is infinite or not a number.
    """
    _check(codes, (torch.int8,), rows.shape)
    _check(scales, (torch.float32,), rows.shape[:1])
    return _call(rows, 8, 0, codes, scales, None, num_threads)


def to_fp8(rows: Tensor, codes: Tensor, scales: Tensor, num_threads: int = 1) -> bool:
    """As ``to_int8``, codes float8_e4m3fn."""
    _check(codes, (torch.float8_e4m3fn,), rows.shape)
    _check(scales, (torch.float32,), rows.shape[:1])
    return _call(rows, 8, 0, codes, scales, None, num_threads, floats=True)


def to_levels(rows: Tensor, group: int, codes: Tensor, scales: Tensor, num_threads: int = 1) -> bool:
    """rows ``[n, cols]`` -> numbers of nf4's levels uint8 ``[n, ceil(cols / 2)]``, two a byte, the first lowest; scales
    float32 ``[n, ceil(cols / group)]``; written in place. False as ``to_int8``.
    """
    n, cols = rows.shape
    assert group % 2 == 0
    assert 0 < group <= MAX_GROUP
    _check(codes, (torch.uint8,), (n, row_bytes("nf4", cols)))
    _check(scales, (torch.float32,), (n, -(-cols // group)))
    return _call(rows, 4, group, codes, scales, None, num_threads, floats=True)


def in_groups(
    rows: Tensor, bits: int, group: int, codes: Tensor, scales: Tensor, zeros: Tensor | None, num_threads: int = 1
) -> bool:
    """rows ``[n, cols]`` -> codes uint8 of 4 or 5 ``bits``: ``[n, ceil(cols / 2)]``, two a byte, the first lowest, or
    ``[n, ceil(cols / 6) * 4]``, six in 32 bits as `packed` draws them; scales bfloat16 or float32 and zeros uint8
    (None: symmetric, zero is the middle) ``[n, ceil(cols / group)]``; written in place.

    False as ``to_int8``.
    """
    n, cols = rows.shape
    assert group % (32 // bits if bits == 5 else 2) == 0, "codes side by side would belong to two groups"
    assert 0 < group <= MAX_GROUP
    _check(codes, (torch.uint8,), (n, row_bytes(f"int{bits}", cols)))
    _check(scales, (torch.bfloat16, torch.float32), (n, -(-cols // group)))
    if zeros is not None:
        _check(zeros, (torch.uint8,), scales.shape)
    return _call(rows, bits, group, codes, scales, zeros, num_threads)


def _check(target: Tensor, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
    assert target.dtype in dtypes
    assert target.shape == shape
    assert target.is_contiguous()


def _call(
    rows: Tensor, bits: int, group: int, codes: Tensor, scales: Tensor, zeros: Tensor | None, num_threads: int, *,
    floats: bool = False, isa: str = "",
) -> bool:  # fmt: skip
    finite: bool = extension().quantize_rows(
        rows.data_ptr(), *rows.shape, _DTYPES[rows.dtype], bits, floats, group, scales.dtype == torch.float32,
        codes.data_ptr(), scales.data_ptr(), 0 if zeros is None else zeros.data_ptr(), num_threads, isa,
    )  # fmt: skip
    return finite
