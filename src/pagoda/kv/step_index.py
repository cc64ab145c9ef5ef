"""Where everything of a step lies, in numpy, for all layers at once.

It is built from the tables of the batch; where every table is of granularity ``sequence`` (exact attention), the layers
share everything but an offset. The next decode step of the same sequences goes on with it: lengths and slots are one
further, and rows are written anew where their table changed.

Sizes: S sequences, T tokens of the step, L layers, H kv-heads, R rows of one layer, W columns of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from ..core.types import Granularity, KVFormat
from .pages import Int32s
from .table import PageTable

FEW_NUMBERS = 32
"""Numbers that grow one by one."""
DECODE_COLUMNS = 8
"""Columns of a decode step's rows are a multiple, so that an index serves for some pages of tokens."""


class StepIndex:
    """Where everything lies, in numpy. ``L1`` is 1 where all layers are alike but for an offset, else L::

    rows     [L1, R, W]   run bases
    row_of   [S, H]       rows of the (sequence, head)
    offset   [L, S, H]    added to the run bases
    kv_lens  [L1, S, H]   slots once the step's tokens are written
    starts   [S + 1]      first token of each sequence
    wide     [S] or None  as `LayerTable`
    """

    def __init__(
        self,
        fmt: KVFormat,
        tables: Sequence[PageTable],
        q_lens: Sequence[int],
        before: Sequence[int] | None = None,
        wide: Sequence[bool] | None = None,
    ) -> None:
        """``before``: tokens of the same step that precede each one's, where a table is here more than once."""
        self.fmt, self.q_lens = fmt, np.array(q_lens, np.int32)
        self.wide = None if wide is None else torch.tensor(wide, dtype=torch.uint8)
        self.starts = np.zeros(len(tables) + 1, np.int32)
        np.cumsum(self.q_lens, out=self.starts[1:])
        self._seen = [(table.num_tokens + 1, table.edits) for table in tables]
        self._grains = [table.granularity for table in tables]
        self._lens_on: _Counting
        self._slots_on: _Counting
        self._wrap = 0  # steps of one token till a slot is the first of its page
        self._firsts: Sequence[int]
        coarse = all(grain is Granularity.SEQUENCE for grain in self._grains)
        if coarse:
            self.row_of, self.offset = _whole_rows(fmt, len(tables))
            self._firsts = range(len(tables) + 1)
        else:
            self.row_of, self.offset, self._firsts = _rows(fmt, self._grains)
        self.kv_lens = self._lengths(tables, 1 if coarse else fmt.num_layers)
        if before is not None:
            self.kv_lens += np.array(before, np.int32)[:, None]
        self._lens_on = _Counting(self.kv_lens)
        self.rows = self._stack(tables)

    def _lengths(self, tables: Sequence[PageTable], num_layers: int) -> Int32s:
        lens: Int32s = np.empty((num_layers, len(tables), self.fmt.num_kv_heads), np.int32)
        for s, table in enumerate(tables):
            lens[:, s] = table.lens if table.num_rows == 1 else table.lens.reshape(num_layers, -1)
        lens += self.q_lens[:, None]
        return lens

    def _stack(self, tables: Sequence[PageTable]) -> Int32s:
        width = max(1, self.fmt.blocks_for(int(self.kv_lens.max())))
        if len(self.q_lens) == self.starts[-1]:
            width += -width % DECODE_COLUMNS
        rows: Int32s = np.zeros((len(self.kv_lens), self._firsts[-1], width), np.int32)
        for first, last, table in zip(self._firsts[:-1], self._firsts[1:], tables, strict=True):
            bases = table.bases[:, :width]
            rows[:, first:last, : bases.shape[1]] = _by_layer(table, bases, len(rows))
        return rows

    def follow(self, tables: Sequence[PageTable]) -> bool:
        """Becomes, in place, the index of the step after this one: the same tables, one token of each. False where it
        cannot, and then it is of no use any more.
        """
        seen = [(table.num_tokens, table.edits) for table in tables]
        self._lens_on.add_one()
        self._wrap -= 1
        if seen != self._seen:
            for s, (table, now, before) in enumerate(zip(tables, seen, self._seen, strict=True)):
                if now != before and not self._renew(s, table):
                    return False
            self._wrap = 0
        self._seen = [(num + 1, edits) for num, edits in seen]
        if self._wrap > 0:
            self._slots_on.add_one()
            return True
        if int(self.kv_lens.max()) > self.rows.shape[2] * self.fmt.page_size:
            return False
        self.__dict__.pop("writes", None)
        return True

    def _renew(self, s: int, table: PageTable) -> bool:
        """The rows and lengths of a table that changed; False if a row is longer than those here."""
        count, width = int(table.counts.max()), self.rows.shape[2]
        if table.granularity is not self._grains[s] or count > width:
            return False
        num_layers = len(self.kv_lens)
        self.kv_lens[:, s] = table.lens if table.num_rows == 1 else table.lens.reshape(num_layers, -1)
        self.kv_lens[:, s] += np.int32(1)
        mine = self.rows[:, self._firsts[s] : self._firsts[s + 1]]
        mine[..., :count], mine[..., count:] = _by_layer(table, table.bases[:, :count], num_layers), 0
        return True

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """rows, row_of, offset, kv_lens and starts, over the same memory."""
        found = (self.rows, self.row_of, self.offset, self.kv_lens, self.starts)
        return tuple(torch.from_numpy(np.ascontiguousarray(x)) for x in found)

    @cached_property
    def writes(self) -> tuple[Tensor, Tensor]:
        """page_ids and slots [L1, T, H] of the step's tokens (with L1 == 1 the ids of layer 0)."""
        page_ids, slots = (np.ascontiguousarray(x) for x in self._find_writes())
        self._slots_on, self._wrap = _Counting(slots), self.fmt.page_size - int(slots.max(initial=0))
        return torch.from_numpy(page_ids), torch.from_numpy(slots)

    def _find_writes(self) -> tuple[Int32s, Int32s]:
        if len(self.q_lens) == self.starts[-1]:
            return self._decode_writes()
        owner = np.repeat(np.arange(len(self.q_lens)), self.q_lens)  # [T] sequence of each token
        from_end = np.arange(len(owner)) - self.starts[1:][owner]  # -n … -1 within a chunk of n
        at = self.kv_lens[:, owner] + from_end.astype(np.int32)[:, None]
        column, slots = np.divmod(at, np.int32(self.fmt.page_size))
        layers = np.arange(len(at))[:, None, None]
        page_ids: Int32s = self.rows[layers, self.row_of[owner], column]
        page_ids += self.offset[: len(at), owner]
        return page_ids, slots

    def _decode_writes(self) -> tuple[Int32s, Int32s]:
        """The same where every sequence brings one token."""
        column, slots = np.divmod(self.kv_lens - np.int32(1), np.int32(self.fmt.page_size))
        layers = np.arange(len(column))[:, None, None]
        page_ids: Int32s = self.rows[layers, self.row_of, column]
        page_ids += self.offset[: len(column)]
        return page_ids, slots


class _Counting:
    """A contiguous array whose numbers grow by one, in place. Few of them do one after the other: where a model's
    weights went through the caches, numpy's sum takes 15 us, and two numbers in plain Python take 4.
    """

    __slots__ = ("_array", "_few")

    def __init__(self, array: Int32s) -> None:
        self._array = array
        self._few = memoryview(array).cast("B").cast("i") if 0 < array.size <= FEW_NUMBERS else None

    def add_one(self) -> None:
        few = self._few
        if few is None:
            self._array += np.int32(1)
        else:
            for place in range(len(few)):
                few[place] += 1


def _by_layer(table: PageTable, bases: Int32s, num_layers: int) -> Int32s:
    """Columns of its rows [num_rows, w] as [layers, rows of a layer, w]."""
    return bases if table.num_rows == 1 else bases.reshape(num_layers, -1, bases.shape[1])


def _rows(fmt: KVFormat, grains: Sequence[Granularity]) -> tuple[Int32s, Int32s, list[int]]:
    """row_of, offset, and the first row of each sequence's tables in a layer, with how many there are at the end."""
    coarse = np.array([grain is Granularity.SEQUENCE for grain in grains])[:, None]
    fine = np.array([grain is Granularity.HEAD for grain in grains])[:, None]
    heads, layers = np.arange(fmt.num_kv_heads), np.arange(fmt.num_layers)[:, None, None]
    firsts = np.concatenate([[0], np.cumsum(np.where(fine[:, 0], fmt.num_kv_heads, 1))])
    row_of = (firsts[:-1, None] + fine * heads).astype(np.int32)
    offset = (~fine * heads + coarse * fmt.num_kv_heads * layers).astype(np.int32)
    return row_of, offset, firsts.tolist()


@lru_cache(maxsize=256)
def _whole_rows(fmt: KVFormat, num_seqs: int) -> tuple[Int32s, Int32s]:
    """row_of and offset where every table has one row for all layers and heads; nobody writes into them."""
    heads, layers = np.arange(fmt.num_kv_heads), np.arange(fmt.num_layers)[:, None, None]
    row_of = np.repeat(np.arange(num_seqs, dtype=np.int32)[:, None], fmt.num_kv_heads, axis=1)
    offset = np.empty((fmt.num_layers, num_seqs, fmt.num_kv_heads), np.int32)
    offset[:] = heads + fmt.num_kv_heads * layers
    return row_of, offset
