"""What of a step over offloaded KV is attended at a time: a few heads of one sequence, or all of several short ones.

Made once for all layers, whose pages lie alike: a layer further on, everything in the tier is ``H`` heads further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from ...kernels.ops._scratch import scratch_table
from ..pages import Int32s
from .storage import OffloadedStorage
from .tier_file import Int64s, runs_of


class Member:
    """A sequence of the step: ``index`` in the batch, ``num`` tokens on top of ``held`` slots, in ``blocks`` pages;
    ``wide``: as `LayerTable`.
    """

    def __init__(self, index: int, blocks: Int32s, held: int, num: int, wide: bool) -> None:
        self.index, self.blocks, self.held, self.num, self.wide = index, blocks, held, num, wide


class Runs:
    """Places in the tier [n], bytes [n] and bytes into a buffer [n], of one layer; ``member``: whose each is."""

    def __init__(self, parts: list[tuple[Int64s, Int64s, Int64s]], members: list[int]) -> None:
        self.places, self.sizes, self.offsets = (
            np.concatenate([part[i] for part in parts]) if parts else np.zeros(0, np.int64) for i in range(3)
        )
        self.member = np.repeat(members, [len(part[0]) for part in parts])
        """Index in the batch."""


class Group:
    """``heads`` (a slice of the kv-heads) of ``members``, in a buffer where head h has its pages ``num_pages`` further
    on than head h - 1, those of the members side by side.

    rows     the step's tokens: a slice where they lie side by side, else int64 [T]
    table  what attention takes, of pages of the buffer
    ids, slots  int32 [T, heads]: where the tokens' K and V go, in pages of the buffer
    firsts   each member's first page in the buffer, of the first head
    reads, writes  `Runs` of layer 0: what holds slots already, and what the tokens go into
    written  int64 ids of the pages that they go into, of layer 0
    """

    def __init__(
        self, storage: OffloadedStorage, members: Sequence[Member], starts: Sequence[int], heads: slice
    ) -> None:
        fmt, num_heads = storage.fmt, heads.stop - heads.start
        counts = [fmt.blocks_for(member.held + member.num) for member in members]
        firsts = [0, *accumulate(counts)]
        self.heads, self.members, self.num_pages, self.firsts = heads, members, firsts[-1], firsts[:-1]
        first, num = members[0].index, len(members)
        self.rows: slice | Tensor = slice(starts[first], starts[first + num])
        if members[-1].index != first + num - 1:
            spans = [np.arange(starts[m.index], starts[m.index + 1], dtype=np.int64) for m in members]
            self.rows = torch.from_numpy(np.concatenate(spans))
        lens = [member.held + member.num for member in members]
        rows = [np.arange(first, first + count, dtype=np.int32) for first, count in zip(firsts, counts, strict=False)]
        begins = [0, *accumulate(member.num for member in members)]
        wide = torch.tensor([member.wide for member in members], dtype=torch.uint8)
        self.table = scratch_table(num_heads, torch.device("cpu"), rows, lens, begins, firsts[-1], wide)
        slots = [
            np.arange(first * fmt.page_size + m.held, first * fmt.page_size + m.held + m.num, dtype=np.int32)
            for first, m in zip(firsts, members, strict=False)
        ]
        ids, within = np.divmod(np.concatenate(slots)[:, None], np.int32(fmt.page_size))
        spread = np.arange(num_heads, dtype=np.int32) * np.int32(firsts[-1])
        self.ids = torch.from_numpy(ids + spread)
        self.slots = torch.from_numpy(np.broadcast_to(within, (len(ids), num_heads)).copy())
        self.reads = self._runs(storage, firsts, [(0, fmt.blocks_for(m.held)) for m in members])
        spans = [(m.held // fmt.page_size, count) for m, count in zip(members, counts, strict=True)]
        self.writes = self._runs(storage, firsts, spans)
        fresh = np.concatenate([m.blocks[a:b] for m, (a, b) in zip(members, spans, strict=True)]).astype(np.int64)
        self.written = (fresh + np.arange(heads.start, heads.stop)[:, None]).ravel()

    def _runs(self, storage: OffloadedStorage, firsts: Sequence[int], spans: Sequence[tuple[int, int]]) -> Runs:
        """Columns ``a … b - 1`` of every member, in each of the heads."""
        tier, size, parts, whose = storage.tier, storage.fmt.page_bytes, [], []
        for member, first, (a, b) in zip(self.members, firsts, spans, strict=False):
            at, places, sizes = runs_of(tier.places(member.blocks[a:b]), size)
            for number, head in enumerate(range(self.heads.start, self.heads.stop)):
                offsets = (at + (first + a + number * self.num_pages)) * size
                parts.append((places + head * tier.head_step, sizes, offsets))
                whose.append(member.index)
        return Runs(parts, whose)


def divide(storage: OffloadedStorage, members: Sequence[Member], starts: Sequence[int]) -> list[Group]:
    """The members in groups that fit into a buffer."""
    return [Group(storage, mine, starts, heads) for mine, heads in _shares(storage, members)]


def _shares(storage: OffloadedStorage, members: Sequence[Member]) -> Iterator[tuple[list[Member], slice]]:
    num_heads, room = storage.fmt.num_kv_heads, storage.part_pages
    whole, held = list[Member](), 0
    for member in members:
        pages = storage.fmt.blocks_for(member.held + member.num)
        if num_heads * pages > room:
            at_once = room // pages
            assert at_once, f"a head of {pages} pages in a buffer of {room}"
            for first in range(0, num_heads, at_once):
                yield [member], slice(first, min(num_heads, first + at_once))
            continue
        if whole and num_heads * (held + pages) > room:
            yield whole, slice(0, num_heads)
            whole, held = [], 0
        whole, held = [*whole, member], held + pages
    if whole:
        yield whole, slice(0, num_heads)


def of_heads(options: Mapping[str, object], queries: slice) -> dict[str, object]:
    """Attention's options for some of the query heads."""
    return {name: value[queries] if isinstance(value, Tensor) else value for name, value in options.items()}
