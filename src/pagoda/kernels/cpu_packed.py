"""The C++ bodies of products with packed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .dispatch import Features
from .packed import BITS, PANEL, PackedWeight

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


def packed_embedding(ids: Tensor, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """As `ops.packed_embedding` for formats of whole bytes: one gather of the rows' lanes, no panel is unpacked.

    One token, rows of 896 in bfloat16, on a busy core: 148 us against 258 for the reference, which unpacks the panel.
    """
    flat = ids.reshape(-1).long()
    panels, lanes = flat // PANEL, flat % PANEL
    block = 32 // BITS[packed.format]
    fields = packed.data.view(_TYPES[packed.format]).view(packed.num_panels, -1, PANEL, block)[panels, :, lanes]
    if packed.format == "int8":  # a lane's bytes are inputs 0, 2, 1, 3 of the block
        assert packed.scales is not None
        fields = (fields[..., [0, 2, 1, 3]].to(torch.int16) - 128).float() * packed.scales.view(-1)[flat][:, None, None]
    rows = fields.reshape(len(flat), fields.shape[1] * block)[:, : packed.inputs]
    return rows.to(dtype).view(*ids.shape, packed.inputs)


_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}
dispatch.register(
    "packed_embedding", "cpu", packed_embedding,
    Features(CPU, frozenset({torch.float32, torch.bfloat16}), frozenset(_TYPES)),
)  # fmt: skip
dispatch.register(
    "packed_linear", "cpu", packed_linear,
    Features(CPU, frozenset({torch.float32, torch.bfloat16}), frozenset({*BITS, "dynamic", "bias"})),
)  # fmt: skip
