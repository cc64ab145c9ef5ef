"""The C++ body of paged attention."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu, head_rows
from .dispatch import Features
from .layout import PageLayout
from .ops._table import LayerTable


def paged_attention(
    q: Tensor,
    pages: Tensor,
    layout: PageLayout,
    table: LayerTable,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    v_dim: int | None = None,
    prob_sums: Tensor | None = None,
    isa: str = "",
) -> Tensor:
    """As `ops.paged_attention`, without ``prob_sums``; ``isa`` fixes the instruction set (for tests)."""
    q, columns = head_rows(q), layout.v_dim if v_dim is None else v_dim
    num_seqs, num_kv_heads = table.kv_lens.shape
    out = torch.empty(q.shape[0], q.shape[1], columns, dtype=q.dtype)
    if out.shape[0] != table.q_starts_cpu[-1]:
        out.zero_()  # tokens of no sequence
    rows, row_of, offset = table.rows.contiguous(), table.row_of.contiguous(), table.offset.contiguous()
    kv_lens, q_starts = table.kv_lens.contiguous(), table.q_starts.contiguous()
    wide_sinks = None if sinks is None else sinks.float().contiguous()  # named, so that they outlive the call
    wide_slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()
    _cpu.paged_attention(
        q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), q.dtype == torch.bfloat16,
        pages.data_ptr(), pages.shape[0], layout.page_size, layout.k_dim, layout.v_dim, columns,
        rows.data_ptr(), rows.shape[0], rows.shape[1], row_of.data_ptr(), offset.data_ptr(), kv_lens.data_ptr(),
        q_starts.data_ptr(), num_seqs, q.shape[0], q.shape[1], num_kv_heads, scale, soft_cap, window,
        0 if wide_sinks is None else wide_sinks.data_ptr(), 0 if wide_slopes is None else wide_slopes.data_ptr(),
        torch.get_num_threads(), isa,
    )  # fmt: skip
    return out


dispatch.register(
    "paged_attention", "cpu", paged_attention,
    Features(
        CPU, frozenset({torch.float32, torch.bfloat16}), frozenset({"window", "soft_cap", "sinks", "alibi", "latent"}),
        same_dtype=True, multiple_of=16,
    ),
)  # fmt: skip
