"""The C++ bodies of products with packed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .dispatch import Features
from .packed import BITS, PackedWeight

FORMATS = {name: index for index, name in enumerate(BITS)}  # csrc/packed.hpp numbers them alike


def packed_linear(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, dynamic: bool = False, isa: str = ""
) -> Tensor:
    """As `ops.packed_linear`; ``isa`` fixes the instruction set (for tests)."""
    tokens = x.reshape(-1, packed.inputs).contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    out = torch.empty(tokens.shape[0], packed.outputs, dtype=x.dtype)
    scales, zeros = packed.scales, packed.zeros
    _cpu.packed_linear(
        tokens.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), tokens.shape[0],
        x.dtype == torch.bfloat16, dynamic, FORMATS[packed.format], packed.outputs, packed.inputs, packed.group,
        packed.data.data_ptr(), 0 if scales is None else scales.data_ptr(), 0 if zeros is None else zeros.data_ptr(),
        scales is None or scales.dtype == torch.float32, torch.get_num_threads(), isa,
    )  # fmt: skip
    return out.view(*x.shape[:-1], packed.outputs)


dispatch.register(
    "packed_linear", "cpu", packed_linear,
    Features(CPU, frozenset({torch.float32, torch.bfloat16}), frozenset({*BITS, "dynamic", "bias"})),
)  # fmt: skip
