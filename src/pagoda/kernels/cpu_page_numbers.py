"""The C++ bodies that decode and encode pages of whole-page codecs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .dispatch import Features
from .page_code import KINDS, PageCode

MOST_DIM = 512  # kMostDim of csrc/page_numbers.hpp


def page_numbers(
    pages: Tensor, ids: Tensor, places: Tensor, keys: Tensor, values: Tensor, code: PageCode, isa: str = ""
) -> None:
    """As `ops.page_numbers`; ``isa`` fixes the instruction set (for tests)."""
    ids, places, tables = ids.contiguous(), places.contiguous(), tables_of(code)
    halves = [
        (side, out.data_ptr(), out.stride(0), out.stride(1))
        for side, out in zip(sides_of(code, tables), (keys, values), strict=True)
    ]
    _cpu.page_numbers(
        pages.data_ptr(), pages.shape[0], pages.stride(0), code.page_size, ids.data_ptr(), places.data_ptr(),
        ids.shape[0], ids.shape[1], keys.dtype == torch.bfloat16, *halves, torch.get_num_threads(), isa,
    )  # fmt: skip


def page_codes(pages: Tensor, ids: Tensor, keys: Tensor, values: Tensor, code: PageCode, isa: str = "") -> None:
    """As `ops.page_codes`; ``isa`` fixes the instruction set (for tests)."""
    ids, tables = ids.contiguous(), tables_of(code)
    assert code.sides is not None
    for x, dim in ((keys, code.k_dim), (values, code.v_dim)):
        assert x.stride()[1:] == (dim, 1)
        assert x.shape[:2] == (len(ids), keys.shape[1])
        assert x.shape[1] >= ids.shape[1] * code.page_size
    sources = [
        (side, x.data_ptr(), x.stride(0) * x.element_size())
        for side, x in zip(sides_of(code, tables), (keys, values), strict=True)
    ]
    _cpu.page_codes(
        pages.data_ptr(), pages.shape[0], pages.stride(0), code.page_size, ids.data_ptr(), ids.shape[0], ids.shape[1],
        keys.dtype == torch.bfloat16, sources, torch.get_num_threads(), isa,
    )  # fmt: skip


BoundSide = tuple[int, list[int], int, int, int]


def tables_of(code: PageCode) -> list[Tensor | None]:
    """As the kernels read them."""
    assert code.sides is not None
    return [None if side.table is None else side.table.float().contiguous() for side in code.sides]


def sides_of(code: PageCode, tables: list[Tensor | None]) -> list[BoundSide]:
    """Keys and values as the extension takes them; ``tables`` must outlive it."""
    assert code.sides is not None
    found = []
    for side, table, dim in zip(code.sides, tables, (code.k_dim, code.v_dim), strict=True):
        address, stride = (0, 0) if table is None else (table.data_ptr(), table.stride(0))
        found.append((KINDS.index(side.kind), list(side.at), address, stride, dim))
    return found


class LayerSides:
    """How the pages of all layers are read, as a step's program takes it. ``num_bytes``: of tables that are its own."""

    def __init__(self, codes: Sequence[PageCode], page_bytes: int) -> None:
        self._written = all(code.kinds <= _WRITTEN and code.encode is not None for code in codes)
        self._tables = [tables_of(code) for code in codes]
        sides = [side for code, tables in zip(codes, self._tables, strict=True) for side in sides_of(code, tables)]
        self.native = _cpu.CodedSides(sides, page_bytes)

    def can_write(self, dtype: torch.dtype) -> bool:
        """Whether a program encodes numbers of ``dtype`` into such pages."""
        return self._written and dtype in _DTYPES

    def num_bytes(self, given: Iterable[Tensor]) -> int:
        """Bytes of tables that are not parts of ``given``."""
        lent = {t.untyped_storage().data_ptr() for t in given}
        own = [t for tables in self._tables for t in tables if t is not None]
        return sum(t.nbytes for t in own if t.untyped_storage().data_ptr() not in lent)


def can_read(code: PageCode) -> bool:
    """Whether the kernels decode such pages."""
    return code.sides is not None and max(code.k_dim, code.v_dim) <= MOST_DIM


_DTYPES = frozenset({torch.float32, torch.bfloat16})
_WRITTEN = frozenset({"channel_grid", "token_grid", "block_floats", "coupled", "atoms"})
_ABLE = Features(CPU, _DTYPES, frozenset(KINDS), MOST_DIM)
dispatch.register("page_numbers", "cpu", page_numbers, _ABLE)
dispatch.register("page_codes", "cpu", page_codes, Features(CPU, _DTYPES, _WRITTEN, MOST_DIM))
