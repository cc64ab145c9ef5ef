"""A weight matrix in the order in which the kernels read it. Only this file and `csrc/packed.hpp` know that order.

Sixteen output rows make a panel, one register wide: lane r belongs to row r of the panel, 32 bits of it at a time.
The panels follow one another, each contiguous over all inputs, so a product reads memory from front to back and never
sums across lanes.

    data  [experts][panels][blocks][16 lanes][32 bits]            a block: as many inputs as fit in 32 bits of a lane

    format    bits  inputs of a block   what a field holds
    fp32       32           1           the weight
    bf16       16           2           the weight
    int8        8           4           q + 128
    int4        4           8           q + 8, or q as it is when there are zero points
    ternary     2          16           q + 1
    int5        5           6           q + 16, or q as it is when there are zero points
    fp16       16           2           the weight
    fp8         8           4           the bits of an e4m3 float
    nf4         4           8           the number of a level (`packed_bytes.NF4_LEVELS`)
    bf12       16           2           the weight: four blocks in 192 bytes, `bf12` draws them

The first half of a lane's fields (from the lowest bits) are the even inputs of the block, the second half the odd ones:

    int4, one lane:  bits 0        4        8        12       16       20       24       28
                     input 0       2        4        6        1        3        5        7

so a shift by n fields leaves inputs 2n and 2n+1 at the bottom of the lane's two halves, where a table look-up turns
them into a pair for the dot product of bfloat16, while a shift and a byte mask leave four inputs for the dot product
of bytes. Three fields of int5 fill 15 of a half's 16 bits: the look-up takes five bits, as it does for int4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError
from . import bf12
from .packed_bytes import BITS, GROUPS, NF4_LEVELS, PANEL, check_packed, num_blocks

_PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "bf12": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """``experts`` matrices of ``outputs`` rows and ``inputs`` columns, one after the other (a plain layer has one).

    data: uint8, as drawn above. scales: int8, fp8 and ternary float32 ``[experts, panels * 16]``, one per row; int4,
    int5 and nf4 ``[experts, panels, groups, 16]`` in bfloat16 or float32, one per row and group of inputs;
    bf12 int32, its windows; else None.
    zeros: uint8 like those, or None when q is symmetric. The last group may be short.
    """

    format: str
    outputs: int
    inputs: int
    data: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None
    group: int = 0  # inputs that share a scale (int4, int5 and nf4 only)
    experts: int = 1
    opened: Callable[[], Tensor] | None = None
    """Of codes as they are stored (`coded`; ``data`` is a table of their addresses): the float32 weight."""

    @property
    def nbytes(self) -> int:
        """Every byte that it holds."""
        return sum(t.numel() * t.element_size() for t in (self.data, self.scales, self.zeros) if t is not None)

    @property
    def num_panels(self) -> int:
        """Panels of one expert."""
        return -(-self.outputs // PANEL)

    @property
    def num_groups(self) -> int:
        return -(-self.inputs // self.group) if self.group else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight: ``(outputs, inputs)``, or ``(experts, outputs, inputs)``."""
        return (self.outputs, self.inputs) if self.experts == 1 else (self.experts, self.outputs, self.inputs)


def lay_out(
    format: str, codes: Tensor, scales: Tensor | None = None, zeros: Tensor | None = None, *, group: int = 0
) -> PackedWeight:
    """Packs what is quantized already (or plain weights), as a checkpoint's own quantization gives it.

    codes ``[outputs, inputs]`` or ``[experts, outputs, inputs]``: the weights for fp32, bf16 and fp16 (cast), float8
    for fp8, else integers: int8 q in -128..127, int4 q in -8..7, or 0..15 with ``zeros``, int5 -16..15 or 0..31,
    ternary -1..1, nf4 0..15. scales: float ``[..., outputs]`` for int8, fp8 and ternary, ``[..., outputs, groups]`` for
    int4, int5 and nf4, where bfloat16 stays bfloat16 and everything else becomes float32. zeros ``[..., outputs,
    groups]`` integers 0..15, of int5 0..31.
    Raises ConfigError for an unknown format or group, and for an integer out of range.
    """
    check_packed(format, group)
    experts = codes.shape[0] if codes.ndim == 3 else 1
    outputs, inputs = codes.shape[-2:]
    codes = codes.reshape(experts, outputs, inputs)
    if format == "fp8":
        fields = codes.to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        fields = codes.to(_PLAIN[format]) if format in _PLAIN else _unsigned(format, codes, zeros is not None)
    packed_scales = packed_zeros = None
    if format in GROUPS:
        assert scales is not None
        scales = scales if scales.dtype == torch.bfloat16 else scales.float()
        packed_scales = _by_panel(scales.reshape(experts, outputs, -1))
        packed_zeros = None if zeros is None else _by_panel(zeros.reshape(experts, outputs, -1).to(torch.uint8))
    elif format not in _PLAIN:
        assert scales is not None
        packed_scales = _padded_rows(scales.reshape(experts, outputs).float())
    data = _pack_fields(format, fields)
    if format == "bf12":
        lines = data.view(torch.bfloat16)
        coded, packed_scales = bf12.encode(lines.view(-1, lines.shape[2], 2 * PANEL), inputs)
        data = coded.view(experts, -1, *coded.shape[1:])
    return PackedWeight(format, outputs, inputs, data, packed_scales, packed_zeros, group, experts)


def codes_of(packed: PackedWeight) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What `lay_out` was given: codes, scales and zeros, always with the dimension of experts."""
    fields = _unpack_fields(packed)
    if packed.format in _PLAIN:
        return fields, None, None
    assert packed.scales is not None
    if packed.format == "fp8":
        codes = fields.contiguous().view(torch.float8_e4m3fn)
    else:
        codes = fields.to(torch.int16) - _offset(packed.format, packed.zeros is not None)
    if packed.format not in GROUPS:
        return codes, packed.scales[:, : packed.outputs], None
    zeros = None if packed.zeros is None else _by_row(packed.zeros, packed.outputs)
    return codes, _by_row(packed.scales, packed.outputs), zeros


def unpack(packed: PackedWeight) -> Tensor:
    """The weight that the packed one stands for: float32 (bf16, bf12, fp16: their own) in `PackedWeight.shape`."""
    if packed.opened is not None:
        return packed.opened()
    codes, scales, zeros = codes_of(packed)
    if scales is None:
        return codes.reshape(packed.shape)
    if packed.format == "nf4":
        codes = torch.tensor(NF4_LEVELS, device=codes.device)[codes.long()]
    if packed.group == 0:
        return (codes.float() * scales[..., None]).reshape(packed.shape)
    groups = torch.arange(packed.inputs, device=codes.device) // packed.group
    values = codes.float() if zeros is None else codes.float() - zeros.float()[..., groups]
    return (values * scales.float()[..., groups]).reshape(packed.shape)


def _offset(format: str, zeros: bool) -> int:
    return 0 if zeros or format == "nf4" else 1 << (BITS[format] - 1) if format != "ternary" else 1


def _unsigned(format: str, codes: Tensor, zeros: bool) -> Tensor:
    offset = _offset(format, zeros)
    low, high = -offset, 1 if format == "ternary" else (1 << BITS[format]) - 1 - offset
    if codes.numel() and (int(codes.min()) < low or int(codes.max()) > high):
        raise ConfigError(f"{format}: integers from {int(codes.min())} to {int(codes.max())}, accepted {low} to {high}")
    return (codes.to(torch.int16) + offset).to(torch.uint8)


def _shifts(format: str) -> list[int]:
    """Where the field of each input of a block lies in its 32 bits."""
    return [16 * (n % 2) + BITS[format] * (n // 2) for n in range(32 // BITS[format])]


def _pack_fields(format: str, fields: Tensor) -> Tensor:
    """``[experts, outputs, inputs]`` unsigned (or plain weights) -> the bytes of ``data``."""
    experts, outputs, inputs = fields.shape
    block, blocks = 32 // BITS[format], num_blocks(format, inputs)
    panels = -(-outputs // PANEL)
    full = fields.new_zeros(experts, panels * PANEL, blocks * block)
    full[:, :outputs, :inputs] = fields
    lanes = full.view(experts, panels, PANEL, blocks, block).transpose(2, 3)  # [experts, panels, blocks, 16, block]
    words = lanes if format in _PLAIN else pack_words(lanes, format)[..., None]
    return words.contiguous().view(torch.uint8).reshape(experts, panels, blocks, PANEL * 4)


def _unpack_fields(packed: PackedWeight) -> Tensor:
    block, blocks = 32 // BITS[packed.format], num_blocks(packed.format, packed.inputs)
    shape = (packed.experts, packed.num_panels, blocks, PANEL)
    if packed.format == "bf12":
        assert packed.scales is not None
        lanes = bf12.decode(packed.data.flatten(0, 1), packed.scales, blocks).reshape(*shape, block)
    elif packed.format in _PLAIN:
        lanes = packed.data.view(_PLAIN[packed.format]).reshape(*shape, block)
    else:
        lanes = unpack_words(packed.data.view(torch.int32).reshape(shape), packed.format)
    rows = lanes.transpose(2, 3).reshape(packed.experts, -1, blocks * block)
    return rows[:, : packed.outputs, : packed.inputs]


def pack_words(fields: Tensor, format: str) -> Tensor:
    """``[..., fields of a block]`` uint8 -> int32 ``[...]``, in the order drawn above."""
    words = torch.zeros(fields.shape[:-1], dtype=torch.int32, device=fields.device)
    for n, shift in enumerate(_shifts(format)):
        words |= fields[..., n].int() << shift
    return words


def unpack_words(words: Tensor, format: str) -> Tensor:
    """The way back: int32 ``[...]`` -> uint8 ``[..., fields of a block]``."""
    mask = (1 << BITS[format]) - 1
    return torch.stack([((words >> shift) & mask).to(torch.uint8) for shift in _shifts(format)], -1)


def _padded_rows(x: Tensor) -> Tensor:
    """``[experts, outputs, ...]`` -> rows padded with zeros to whole panels."""
    full = x.new_zeros(x.shape[0], -(-x.shape[1] // PANEL) * PANEL, *x.shape[2:])
    full[:, : x.shape[1]] = x
    return full


def _by_panel(x: Tensor) -> Tensor:
    """``[experts, outputs, groups]`` -> ``[experts, panels, groups, 16]``."""
    full = _padded_rows(x)
    return full.view(x.shape[0], -1, PANEL, x.shape[2]).transpose(2, 3).contiguous()


def _by_row(x: Tensor, outputs: int) -> Tensor:
    experts, panels, groups, _ = x.shape
    return x.transpose(2, 3).reshape(experts, panels * PANEL, groups)[:, :outputs]
