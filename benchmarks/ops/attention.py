"""Attention over pages beside torch's scaled_dot_product_attention over contiguous tensors of the same size.

torch's are in bfloat16 whatever the pages' format; it knows no codec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pagoda.kernels.layout import PageLayout
from pagoda.kernels.memory import empty_bytes
from pagoda.kernels.ops import LayerTable, kv_write, paged_attention
from pagoda.kv.codecs.base import CODECS

from .frame import Measured, plain
from .timing import REFERENCE, in_turn

PAGE_SIZE = 16
ROUNDS = 9


@dataclass(frozen=True)
class Batch:
    """``num_seqs`` sequences, each with ``queries`` new tokens at the end of ``length`` slots, in ``format``."""

    num_seqs: int
    queries: int
    length: int
    format: str = "bfloat16"

    def flops(self, heads: int, dim: int) -> int:
        """Multiplications and additions, masked slots left out."""
        before = self.length - self.queries
        pairs = self.queries * before + self.queries * (self.queries + 1) // 2
        return 4 * dim * heads * pairs * self.num_seqs


BATCHES = (
    Batch(1, 1, 1024), Batch(1, 1, 8192), Batch(8, 1, 1024), Batch(32, 1, 1024), Batch(32, 1, 4096),
    Batch(1, 1, 8192, "int8"), Batch(32, 1, 4096, "int8"), Batch(32, 1, 4096, "int4"),
    Batch(1, 1024, 1024), Batch(1, 1024, 4096), Batch(1, 2048, 8192), Batch(1, 2048, 8192, "int8"),
)  # fmt: skip


def rows(heads: tuple[int, int], dim: int, clock: str = "wall") -> Iterator[Measured]:
    """heads: (query heads, kv-heads)."""
    for batch in BATCHES:
        pages, layout = _pages(batch, heads[1], dim)
        given = torch.randn(batch.num_seqs * batch.queries, heads[0], dim).bfloat16(), pages, layout
        given += (_table(batch, heads[1]),)
        ways = {
            "pagoda": lambda number, given=given: paged_attention(*given, scale=dim**-0.5),
            "torch": _torch(batch, heads, dim),
            REFERENCE: lambda number, given=given: plain("paged_attention")(*given, scale=dim**-0.5),
        }
        about = {"sequences": batch.num_seqs, "queries": batch.queries, "slots": batch.length, "pages": batch.format}
        slots, queries = batch.num_seqs * batch.length, batch.num_seqs * batch.queries
        moved = slots * heads[1] * layout.page_bytes // PAGE_SIZE + 2 * 2 * dim * heads[0] * queries
        yield Measured(about, in_turn(ways, ROUNDS, clock), moved, batch.flops(heads[0], dim))


def _pages(batch: Batch, kv_heads: int, dim: int) -> tuple[Tensor, PageLayout]:
    """Enough for the batch, written as a model writes them."""
    codec = None if batch.format == "bfloat16" else CODECS.get(batch.format)
    layout = PageLayout(PAGE_SIZE, dim, dim, torch.uint8 if codec else torch.bfloat16, codec)
    num = batch.num_seqs * -(-batch.length // PAGE_SIZE) * kv_heads
    pages = empty_bytes((num, layout.page_bytes), torch.device("cpu")).zero_().view(layout.dtype)
    ids = torch.arange(num, dtype=torch.int32).view(-1, kv_heads).repeat_interleave(PAGE_SIZE, 0)
    slots = (torch.arange(len(ids), dtype=torch.int32) % PAGE_SIZE)[:, None].expand(ids.shape).contiguous()
    k, v = torch.randn(2, len(ids), kv_heads, dim).bfloat16()
    kv_write(k, v, pages, layout, ids, slots)
    return pages, layout


def _table(batch: Batch, kv_heads: int) -> LayerTable:
    """Pages in no order."""
    blocks = -(-batch.length // PAGE_SIZE)
    runs = torch.randperm(batch.num_seqs * blocks).to(torch.int32).view(batch.num_seqs, blocks) * kv_heads
    pairs = (batch.num_seqs, kv_heads)
    starts = [s * batch.queries for s in range(batch.num_seqs + 1)]
    return LayerTable(
        rows=runs,
        row_of=torch.arange(batch.num_seqs, dtype=torch.int32)[:, None].expand(pairs).contiguous(),
        offset=torch.arange(kv_heads, dtype=torch.int32).expand(pairs).contiguous(),
        kv_lens=torch.full(pairs, batch.length, dtype=torch.int32),
        q_starts=torch.tensor(starts, dtype=torch.int32),
        q_starts_cpu=starts,
        max_q_len=batch.queries,
        max_kv_len=batch.length,
        kv_lens_cpu=[[batch.length] * kv_heads] * batch.num_seqs,
    )


def _torch(batch: Batch, heads: tuple[int, int], dim: int) -> Callable[[int], object]:
    q_heads, kv_heads = heads
    q = torch.randn(batch.num_seqs, q_heads, batch.queries, dim).bfloat16()
    k, v = torch.randn(2, batch.num_seqs, kv_heads, batch.length, dim).bfloat16()
    mask, whole = None, batch.queries == batch.length
    if batch.queries > 1 and not whole:
        mask = torch.ones(batch.queries, batch.length, dtype=torch.bool).tril(batch.length - batch.queries)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda number: attend(q, k, v, attn_mask=mask, is_causal=whole, enable_gqa=q_heads != kv_heads)
