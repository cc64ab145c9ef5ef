"""What attention is told about a ragged batch, and such tables made up for cases, tests and benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..case import Make


@dataclass(frozen=True, slots=True)
class LayerTable:
    """One layer's view of the ragged batch; tensors are int32 on the pages' device.

    Page id of slot block j of (s, h): ``rows[row_of[s, h], j] + offset[s, h]``.
    The host copies exist so that no op waits for the device.

    ``wide``: chunks of these sequences are computed as long ones are, however few queries they bring; others as a
    single query is, however many. None: by their lengths. Bodies in which the two differ in bits give a token the same
    ones whenever it is computed; others need not look.
    """

    rows: Tensor  # [R, max_pages]  run bases (page ids); unused cells 0
    row_of: Tensor  # [S, Hkv]      row of each (sequence, kv-head)
    offset: Tensor  # [S, Hkv]      added to the run base
    kv_lens: Tensor  # [S, Hkv]     slots to attend, the chunk's own tokens included (they are the last q_len)
    q_starts: Tensor  # [S + 1]     tokens of sequence s are q_starts[s]:q_starts[s + 1]
    q_starts_cpu: list[int]
    max_q_len: int
    max_kv_len: int
    kv_lens_cpu: list[list[int]] | None = None  # kv_lens on the host; without it the reference reads the tensor
    wide: Tensor | None = None  # uint8 [S], on the host


def layer_table(
    make: Make,
    q_lens: Sequence[int],
    kv_lens: Sequence[int] | Sequence[Sequence[int]],
    *,
    page_size: int,
    num_kv_heads: int,
    per_head: bool = True,
    shared_blocks: int = 0,
) -> tuple[LayerTable, int]:
    """A layer's table over shuffled pages, and how many pages the storage must have.

    ``kv_lens`` is one length a sequence, or one for each of its kv-heads. ``per_head``: a row of single pages for every
    (sequence, head); otherwise a row a sequence, of runs that hold two layers of heads, of which this is the second.
    The first ``shared_blocks`` blocks are the same pages in every sequence.
    """
    lens = [[n] * num_kv_heads if isinstance(n, int) else list(n) for n in kv_lens]
    num_seqs = len(lens)
    max_len = max((n for row in lens for n in row), default=0)
    blocks = max(1, -(-max_len // page_size))
    rows_per_seq, run = (num_kv_heads, 1) if per_head else (1, 2 * num_kv_heads)
    num_rows = max(1, num_seqs * rows_per_seq)
    rows = (make.permutation(num_rows * blocks) * run).view(num_rows, blocks)
    if shared_blocks:
        rows[:, :shared_blocks] = rows[:rows_per_seq, :shared_blocks].repeat(max(1, num_seqs), 1)
    pairs = torch.arange(num_seqs * num_kv_heads, dtype=torch.int32).view(num_seqs, num_kv_heads)
    heads = pairs % num_kv_heads
    starts = [0, *accumulate(q_lens)]
    table = LayerTable(
        rows=rows.to(make.device),
        row_of=(pairs if per_head else pairs // num_kv_heads).contiguous().to(make.device),
        offset=(heads * 0 if per_head else heads + num_kv_heads).contiguous().to(make.device),
        kv_lens=make.ints(lens).view(num_seqs, num_kv_heads),
        q_starts=make.ints(starts),
        q_starts_cpu=starts,
        max_q_len=max(q_lens, default=0),
        max_kv_len=max_len,
    )
    return table, num_rows * blocks * run
