"""The C++ body that decodes pages of whole-page codecs."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .dispatch import Features
from .page_code import KINDS, PageCode, Side

MOST_DIM = 512  # kMostDim of csrc/page_numbers.hpp


def page_numbers(
    pages: Tensor, ids: Tensor, places: Tensor, keys: Tensor, values: Tensor, code: PageCode, isa: str = ""
) -> None:
    """As `ops.page_numbers`; ``isa`` fixes the instruction set (for tests)."""
    assert code.sides is not None
    ids, places = ids.contiguous(), places.contiguous()
    tables = [None if side.table is None else side.table.float().contiguous() for side in code.sides]
    sides = [
        _side(side, table, dim, out)
        for side, table, dim, out in zip(code.sides, tables, (code.k_dim, code.v_dim), (keys, values), strict=True)
    ]
    _cpu.page_numbers(
        pages.data_ptr(), pages.shape[0], pages.stride(0), code.page_size, ids.data_ptr(), places.data_ptr(),
        ids.shape[0], ids.shape[1], keys.dtype == torch.bfloat16, *sides, torch.get_num_threads(), isa,
    )  # fmt: skip


def _side(
    side: Side, table: Tensor | None, dim: int, out: Tensor
) -> tuple[int, list[int], int, int, int, int, int, int]:
    address, stride = (0, 0) if table is None else (table.data_ptr(), table.stride(0))
    return KINDS.index(side.kind), list(side.at), address, stride, dim, out.data_ptr(), out.stride(0), out.stride(1)


_ABLE = Features(CPU, frozenset({torch.float32, torch.bfloat16}), frozenset(KINDS), MOST_DIM)
dispatch.register("page_numbers", "cpu", page_numbers, _ABLE)
