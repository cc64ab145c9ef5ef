"""The C++ body of attention that decodes pages while it multiplies them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, DTYPES, PAGES, _cpu, head_rows
from .cpu_page_numbers import MOST_DIM, sides_of, tables_of
from .dispatch import Features
from .ops._table import LayerTable
from .page_code import KINDS, PageCode, RawSlots


def coded_attention(
    q: Tensor,
    pages: Tensor,
    code: PageCode,
    table: LayerTable,
    raw: Sequence[RawSlots],
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    isa: str = "",
    share_prefixes: bool = True,
) -> Tensor:
    """As `ops.coded_attention`; ``isa`` and ``share_prefixes`` as for `cpu_attention.paged_attention`."""
    q, (num_seqs, num_kv_heads) = head_rows(q), table.kv_lens.shape
    out = torch.empty(q.shape[0], q.shape[1], code.v_dim, dtype=q.dtype)
    if out.shape[0] != table.q_starts_cpu[-1]:
        out.zero_()  # tokens of no sequence
    for one in raw:
        assert one.k.is_contiguous()
        assert one.v.is_contiguous()
        assert one.k.shape[:2] == one.v.shape[:2]
        assert one.k.dtype == one.v.dtype == q.dtype
    rows, row_of, offset = table.rows.contiguous(), table.row_of.contiguous(), table.offset.contiguous()
    kv_lens, q_starts, tables = table.kv_lens.contiguous(), table.q_starts.contiguous(), tables_of(code)
    sides = _cpu.CodedSides(sides_of(code, tables), pages.stride(0))
    numbers = [
        (one.k[:, one.skip :].data_ptr(), one.v[:, one.skip :].data_ptr(), one.start, one.k.shape[1]) for one in raw
    ]
    beside = np.array(numbers, np.int64).reshape(-1, 4).T.copy()
    wide_sinks = None if sinks is None else sinks.float().contiguous()  # named, so that they outlive the call
    wide_slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()
    _cpu.paged_attention(
        q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), DTYPES[q.dtype],
        pages.data_ptr(), pages.shape[0], PAGES, code.page_size, code.k_dim, code.v_dim, code.v_dim,
        rows.data_ptr(), rows.shape[0], rows.shape[1], row_of.data_ptr(), offset.data_ptr(), kv_lens.data_ptr(),
        q_starts.data_ptr(), 0 if table.wide is None else table.wide.data_ptr(), num_seqs, q.shape[0], q.shape[1],
        num_kv_heads, scale, soft_cap, window,
        0 if wide_sinks is None else wide_sinks.data_ptr(), 0 if wide_slopes is None else wide_slopes.data_ptr(),
        0, 0, 0, 0, share_prefixes, True, [sides], [row.ctypes.data for row in beside], [], torch.get_num_threads(),
        isa,
    )  # fmt: skip
    return out


_ABLE = Features(
    CPU, frozenset(DTYPES), frozenset(KINDS) | {"window", "soft_cap", "sinks", "alibi"}, MOST_DIM
)  # fmt: skip
dispatch.register("coded_attention", "cpu", coded_attention, _ABLE)
