"""Attention over pages beside torch's scaled_dot_product_attention over contiguous tensors of the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import LayerTable, paged_attention

from .frame import Measured
from .timing import in_turn

PAGE_SIZE = 16
ROUNDS = 9


@dataclass(frozen=True)
class Batch:
    """``num_seqs`` sequences, each with ``queries`` new tokens at the end of ``length`` slots."""

    num_seqs: int
    queries: int
    length: int

    def flops(self, heads: int, dim: int) -> int:
        """Multiplications and additions, masked slots left out."""
        before = self.length - self.queries
        pairs = self.queries * before + self.queries * (self.queries + 1) // 2
        return 4 * dim * heads * pairs * self.num_seqs


BATCHES = (
    Batch(1, 1, 1024), Batch(1, 1, 8192), Batch(8, 1, 1024), Batch(32, 1, 1024), Batch(1, 1024, 1024),
    Batch(1, 1024, 4096), Batch(1, 2048, 8192),
)  # fmt: skip


def rows(heads: tuple[int, int], dim: int, clock: str = "wall") -> Iterator[Measured]:
    """Times of "pagoda" and "torch" in bfloat16; heads: (query heads, kv-heads)."""
    for batch in BATCHES:
        ways = {"pagoda": _ours(batch, heads, dim), "torch": _torch(batch, heads, dim)}
        about = {"sequences": batch.num_seqs, "queries": batch.queries, "slots": batch.length}
        moved = 2 * dim * batch.num_seqs * (2 * heads[1] * batch.length + 2 * heads[0] * batch.queries)
        yield Measured(about, in_turn(ways, ROUNDS, 1, clock), moved, batch.flops(heads[0], dim))


def _ours(batch: Batch, heads: tuple[int, int], dim: int) -> Callable[[int], object]:
    q_heads, kv_heads = heads
    layout = PageLayout(PAGE_SIZE, dim, dim, torch.bfloat16)
    blocks = -(-batch.length // PAGE_SIZE)
    pages = torch.randn(batch.num_seqs * blocks * kv_heads, layout.page_elems).bfloat16()
    runs = torch.randperm(batch.num_seqs * blocks).to(torch.int32).view(batch.num_seqs, blocks) * kv_heads
    pairs = (batch.num_seqs, kv_heads)
    starts = [s * batch.queries for s in range(batch.num_seqs + 1)]
    table = LayerTable(
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
    q = torch.randn(starts[-1], q_heads, dim).bfloat16()
    return lambda number: paged_attention(q, pages, layout, table, scale=dim**-0.5)


def _torch(batch: Batch, heads: tuple[int, int], dim: int) -> Callable[[int], object]:
    q_heads, kv_heads = heads
    q = torch.randn(batch.num_seqs, q_heads, batch.queries, dim).bfloat16()
    k, v = torch.randn(2, batch.num_seqs, kv_heads, batch.length, dim).bfloat16()
    mask = None
    if batch.queries > 1:
        mask = torch.ones(batch.queries, batch.length, dtype=torch.bool).tril(batch.length - batch.queries)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda number: attend(q, k, v, attn_mask=mask, enable_gqa=q_heads != kv_heads)
