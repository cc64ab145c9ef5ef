"""Codes as a format stores them, row by row, for the C++ products that open them a piece at a time while they multiply.

Formats whose numbers are no fields of one width with a scale: 3 and 2 bits with a low-rank term, dgq, bitstack. The
kernel takes a table of addresses (csrc/packed_open.hpp), so that codes may come and go while a program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ._optional import extension
from .packed import PackedWeight
from .packed_bytes import MAX_BLOCKS

_GRID = ("step", "low", "left", "right")
PARTS = {
    "int3": ("codes", "high", *_GRID), "int2": ("codes", "", *_GRID), "dgq": ("codes", "step", "zero", "scale"),
    "bitstack": ("sign{}", "left{}", "right{}"),
}  # fmt: skip
"""Format -> the codes that its kernel takes, in the order of the table; of bitstack those of a block, as many as there
are. A name that a matrix has no codes of is 0.
"""
DTYPES = (torch.float32, torch.bfloat16)


def can_open(format: str, codes: Mapping[str, Tensor]) -> bool:
    """Whether a kernel opens these codes where they lie."""
    found = codes.values()
    return (
        format in PARTS and all(t.device.type == "cpu" and t.is_contiguous() for t in found) and extension() is not None
    )


def coded_weight(
    format: str, codes: Mapping[str, Tensor], outputs: int, inputs: int, group: int, opened: Callable[[], Tensor]
) -> PackedWeight:
    """What `ops.packed_linear` takes; ``codes`` must outlive it. ``opened`` gives float32 ``[outputs, inputs]``."""
    table = torch.zeros(2 + len(PARTS[format]) * (MAX_BLOCKS if format == "bitstack" else 1), dtype=torch.int64)
    fill_table(table, format, codes)
    return PackedWeight(format, outputs, inputs, table, group=group, opened=opened)


def fill_table(table: Tensor, format: str, codes: Mapping[str, Tensor]) -> None:
    """Writes the addresses of ``codes``, and how many blocks there are, in place."""
    names, blocks = PARTS[format], 1
    if format == "bitstack":
        blocks = next(i for i in range(MAX_BLOCKS + 1) if f"sign{i}" not in codes)
        names = tuple(name.format(i) for i in range(blocks) for name in names)
    left = codes.get("left0" if format == "bitstack" else "left")
    rows = [codes[name].data_ptr() if name in codes else 0 for name in names]
    found = [0 if left is None else left.shape[1], blocks, *rows]
    table[: len(found)] = torch.tensor(found)
