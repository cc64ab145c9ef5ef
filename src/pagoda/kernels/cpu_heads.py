"""The C++ bodies of products of heads."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, DTYPES, _cpu
from .dispatch import Features


def head_products(x: Tensor, weight: Tensor, *, down: bool = False, isa: str = "") -> Tensor:
    """As `ops.head_products`; ``isa`` fixes the instruction set (for tests)."""
    x = x if x.stride(2) == 1 else x.contiguous()
    weight = weight.contiguous()
    heads, rows, columns = weight.shape
    out = torch.empty(x.shape[0], heads, columns if down else rows, dtype=x.dtype)
    _cpu.head_products(
        x.data_ptr(), *x.stride()[:2], out.data_ptr(), *out.stride()[:2], weight.data_ptr(), x.shape[0], heads, rows,
        columns, down, DTYPES[x.dtype], torch.get_num_threads(), isa,
    )  # fmt: skip
    return out


dispatch.register(
    "head_products", "cpu", head_products,
    Features(CPU, frozenset({torch.float32, torch.bfloat16}), same_dtype=True),
)  # fmt: skip
