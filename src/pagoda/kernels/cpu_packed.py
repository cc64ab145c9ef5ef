"""The C++ bodies of products with packed weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .coded import PARTS
from .dispatch import Features
from .packed import BITS, PackedWeight

FORMATS = {name: index for index, name in enumerate((*BITS, *PARTS))}  # csrc/packed.hpp numbers them alike


def packed_linear(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, *, dynamic: bool = False, wide: bool = False,
    isa: str = "",
) -> Tensor:  # fmt: skip
    """As `ops.packed_linear`; ``isa`` fixes the instruction set (for tests)."""
    tokens = x.reshape(-1, packed.inputs).contiguous()
    bias = None if bias is None else bias.to(x.dtype).contiguous()
    out = torch.empty(tokens.shape[0], packed.outputs, dtype=torch.float32 if wide else x.dtype)
    _cpu.packed_linear(
        tokens.data_ptr(), 0 if bias is None else bias.data_ptr(), out.data_ptr(), tokens.shape[0],
        x.dtype == torch.bfloat16, dynamic, wide, *packed_matrix(packed), torch.get_num_threads(), isa,
    )  # fmt: skip
    return out.view(*x.shape[:-1], packed.outputs)


def grouped_linear(
    x: Tensor, counts: Sequence[int], matrices: Sequence[PackedWeight], biases: Sequence[Tensor] | None = None, *,
    dynamic: bool = False, isa: str = "",
) -> Tensor:  # fmt: skip
    """As `ops.grouped_linear`."""
    x = x.contiguous()
    out = torch.empty(x.shape[0], matrices[0].outputs, dtype=x.dtype)
    used = [e for e, count in enumerate(counts) if count]
    own = {e: biases[e].to(x.dtype).contiguous() for e in used} if biases is not None else {}
    groups = [(counts[e], own[e].data_ptr() if own else 0, *packed_matrix(matrices[e])) for e in used]
    _cpu.grouped_linear(
        x.data_ptr(), out.data_ptr(), x.shape[0], x.dtype == torch.bfloat16, dynamic, groups, torch.get_num_threads(),
        isa,
    )  # fmt: skip
    return out


def packed_embedding(ids: Tensor, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """As `ops.packed_embedding`. Raises IndexError for an id that is no row."""
    flat = ids.reshape(-1).to(torch.int64).contiguous()
    out = torch.empty(len(flat), packed.inputs, dtype=dtype)
    _cpu.packed_embedding(
        flat.data_ptr(), out.data_ptr(), len(flat), dtype == torch.bfloat16, *packed_matrix(packed),
        torch.get_num_threads(),
    )  # fmt: skip
    return out.view(*ids.shape, packed.inputs)


def packed_matrix(packed: PackedWeight) -> tuple[int, int, int, int, int, int, int, bool]:
    """A packed weight as the extension takes it."""
    scales, zeros = packed.scales, packed.zeros
    return (
        FORMATS[packed.format], packed.outputs, packed.inputs, packed.group, packed.data.data_ptr(),
        0 if scales is None else scales.data_ptr(), 0 if zeros is None else zeros.data_ptr(),
        scales is None or scales.dtype == torch.float32,
    )  # fmt: skip


dispatch.register(
    "packed_embedding", "cpu", packed_embedding,
    Features(CPU, frozenset({torch.float32, torch.bfloat16}), frozenset(BITS)),
)  # fmt: skip
dispatch.register(
    "packed_linear", "cpu", packed_linear,
    Features(CPU, frozenset({torch.float32, torch.bfloat16}), frozenset({*BITS, *PARTS, "dynamic", "bias"})),
)  # fmt: skip
dispatch.register(
    "grouped_linear", "cpu", grouped_linear,
    Features(CPU, frozenset({torch.float32, torch.bfloat16}), frozenset({*BITS, "dynamic", "bias"})),
)  # fmt: skip
