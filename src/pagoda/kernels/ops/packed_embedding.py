"""Rows of a packed weight: the look-up of tokens in an embedding that also serves as output layer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op
from ..packed import PANEL, PackedWeight, unpack
from ..quantize import pack


def packed_embedding(ids: Tensor, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Row ``ids[i]`` of the weight, in ``dtype``: ids ``[...]`` int -> ``[..., inputs]``. One expert only."""
    key = (ids.device.type, packed.format, dtype)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(ids.device.type, (dtype,), options=frozenset({packed.format})))
    out: Tensor = run(ids, packed, dtype)
    return out


def reference(ids: Tensor, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Unpacks the panels that hold the rows, no others (of bf12 all: panels share the list of what is behind them)."""
    flat = ids.reshape(-1).long()
    if packed.format == "bf12":
        return unpack(packed).index_select(0, flat).to(dtype).view(*ids.shape, packed.inputs)
    panels, place = (flat // PANEL).unique(return_inverse=True)
    by_panel = [None if t is None else t.view(packed.num_panels, -1, PANEL) for t in (packed.scales, packed.zeros)]
    chosen = [None if t is None else t.index_select(0, panels) for t in by_panel]
    scales = chosen[0]
    if scales is not None and packed.group == 0:
        scales = scales.reshape(1, -1)
    few = PackedWeight(
        packed.format, len(panels) * PANEL, packed.inputs, packed.data.index_select(1, panels),
        scales if packed.group == 0 or scales is None else scales[None],
        None if chosen[1] is None else chosen[1][None], packed.group,
    )  # fmt: skip
    rows = unpack(few).index_select(0, place * PANEL + flat % PANEL)
    return rows.to(dtype).view(*ids.shape, packed.inputs)


_OP = Op("packed_embedding", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (8e-3, 1e-6)}


def _case(make: Make, count: int, format: str, group: int = 0, symmetric: bool = True) -> dict[str, object]:
    packed = pack(make.normal(50, 70, dtype=torch.float32), format, group=group, symmetric=symmetric)
    return {"ids": make.ints([7 * i % 50 for i in range(count)], torch.int64), "packed": packed, "dtype": make.dtype}


CASES = cross(
    "packed_embedding", _case,
    {"count": 9, "format": "fp32"}, {"count": 9, "format": "bf16"}, {"count": 20, "format": "int8"},
    {"count": 3, "format": "int4", "group": 32}, {"count": 20, "format": "int4", "group": 64, "symmetric": False},
    {"count": 9, "format": "int5", "group": 48, "symmetric": False}, {"count": 5, "format": "ternary"},
    {"count": 0, "format": "int8"}, {"count": 5, "format": "fp16"}, {"count": 20, "format": "fp8"},
    {"count": 9, "format": "nf4", "group": 32}, {"count": 20, "format": "bf12"},
)  # fmt: skip
