"""The C++ body of paged attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import dispatch
from ._extension import CODECS, CPU, DTYPES, _cpu, byte_products_allowed, head_rows, store_of
from .dispatch import Features
from .layout import PageLayout
from .ops._table import LayerTable

byte_products_allowed()  # an environment that makes no sense is refused before any weight is read


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
    prob_counts: Tensor | None = None,
    sum_last: int | Sequence[int] = 0,
    slot_weights: Sequence[Tensor | None] | None = None,
    isa: str = "",
    share_prefixes: bool = True,
    byte_products: bool = True,
) -> Tensor:
    """As `ops.paged_attention`. For tests and benchmarks: ``isa`` fixes the instruction set; without
    ``share_prefixes`` every sequence reads all its pages itself (the same bits, more slowly); without
    ``byte_products`` int8 pages are multiplied as the numbers they stand for, whatever the queries.
    """
    q, columns = head_rows(q), layout.v_dim if v_dim is None else v_dim
    num_seqs, num_kv_heads = table.kv_lens.shape
    out = torch.empty(q.shape[0], q.shape[1], columns, dtype=q.dtype)
    if out.shape[0] != table.q_starts_cpu[-1]:
        out.zero_()  # tokens of no sequence
    rows, row_of, offset = table.rows.contiguous(), table.row_of.contiguous(), table.offset.contiguous()
    kv_lens, q_starts = table.kv_lens.contiguous(), table.q_starts.contiguous()
    wide_sinks = None if sinks is None else sinks.float().contiguous()  # named, so that they outlive the call
    wide_slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()
    last = None if prob_sums is None else np.ascontiguousarray(np.broadcast_to(np.int64(sum_last), (num_seqs,)))
    weights = (
        [] if slot_weights is None else [(0, 0) if w is None else (w.data_ptr(), w.shape[1]) for w in slot_weights]
    )
    _cpu.paged_attention(
        q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), DTYPES[q.dtype],
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim, columns,
        rows.data_ptr(), rows.shape[0], rows.shape[1], row_of.data_ptr(), offset.data_ptr(), kv_lens.data_ptr(),
        q_starts.data_ptr(), 0 if table.wide is None else table.wide.data_ptr(), num_seqs, q.shape[0], q.shape[1],
        num_kv_heads, scale, soft_cap, window,
        0 if wide_sinks is None else wide_sinks.data_ptr(), 0 if wide_slopes is None else wide_slopes.data_ptr(),
        0 if prob_sums is None else prob_sums.data_ptr(), 0 if prob_counts is None else prob_counts.data_ptr(),
        table.max_kv_len if prob_sums is None else prob_sums.shape[2],
        0 if last is None else last.ctypes.data, share_prefixes, byte_products, [], [], weights,
        torch.get_num_threads(), isa,
    )  # fmt: skip
    return out


def plan(
    table: LayerTable,
    layout: PageLayout,
    num_q_heads: int,
    share_prefixes: bool = True,
    window: int = 0,
    threads: int = 1,
) -> tuple[list[tuple[tuple[int, ...], int, int, int]], list[int]]:
    """For tests: what the threads take one by one as (sequences, kv-head, first slot, last slot + 1), and the first of
    each thread's stretch, their number at the end; no stretches where chunks are tiled over their queries."""
    num_seqs, num_kv_heads = table.kv_lens.shape
    items, stretches = _cpu.attention_plan(
        table.rows.data_ptr(), *table.rows.shape, table.row_of.data_ptr(), table.offset.data_ptr(),
        table.kv_lens.data_ptr(), table.q_starts.data_ptr(), num_seqs, num_q_heads, num_kv_heads,
        layout.page_size, layout.k_dim, layout.v_dim, window, share_prefixes, threads,
    )  # fmt: skip
    return [(tuple(sorted(sequences)), *place) for sequences, *place in items], stretches


dispatch.register(
    "paged_attention", "cpu", paged_attention,
    Features(
        CPU, frozenset(DTYPES),
        frozenset({"window", "soft_cap", "sinks", "alibi", "latent", "prob_sums", "slot_weights"}) | CODECS,
    ),
)  # fmt: skip
