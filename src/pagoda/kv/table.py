"""Page tables: where the KV of one sequence lies.

A table has ``num_rows`` rows (one, one per layer, or one per layer and kv-head). Row r holds the bases of its runs and
a length in slots; slot i of a head lies in its page of run ``i // page_size``, at ``i % page_size``::

    bases  [num_rows, capacity] int32     row r: │ run │ run │ run │ - │ - │      counts[r] == 3
    lens   [num_rows] int32                       ▓▓▓▓▓ ▓▓▓▓▓ ▓▓░░░               slots written; ░ reserved, not written

Cells beyond ``counts`` are 0, and so are the first ``dead`` of a row, whose slots no query reaches any more
(`windows`): they are counted, and have no page.

Rows are numpy arrays that grow by doubling, so that the runner stacks the rows of a step by slices, without Python work
per page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..core.types import Granularity, KVFormat
from .pages import Int32s
from .windows import NEVER

FEW_ROWS = 64
"""Rows that are gone through one by one faster than as arrays."""

NONE: Int32s = np.zeros(0, np.int32)


def expand_runs(runs: Int32s, run: int, finer: int) -> Int32s:
    """Runs of ``run`` pages cut into runs of ``finer`` pages, in order: ``[n] -> [n * run // finer]``."""
    if run == finer:
        return runs
    offsets: Int32s = np.arange(run // finer, dtype=np.int32) * np.int32(finer)
    cut: Int32s = (runs[:, None] + offsets).ravel()
    return cut


class PageTable:
    """The rows of one sequence. Knows nothing of reference counts: the manager keeps those."""

    __slots__ = (
        "bases", "counts", "dead", "due", "edits", "fmt", "granularity", "kept_at", "lens", "num_dead", "num_pages",
        "num_rows", "num_tokens", "open_from", "pristine", "room", "run", "tail_owned",
    )  # fmt: skip

    def __init__(self, fmt: KVFormat, granularity: Granularity) -> None:
        self.fmt, self.granularity = fmt, granularity
        self.num_rows, self.run = fmt.num_rows(granularity), fmt.pages_per_run(granularity)
        self.bases: Int32s = np.zeros((self.num_rows, 4), np.int32)
        self.counts: Int32s = np.zeros(self.num_rows, np.int32)
        self.lens: Int32s = np.zeros(self.num_rows, np.int32)
        self.num_tokens = 0  # tokens committed, evicted ones included
        self.kept_at = 0  # num_tokens when slots were last evicted: no rollback beyond
        self.pristine = True  # slot == position in every row
        self.room = 0  # slots that every row can still take without another run
        self.num_pages = 0  # pages held, shared ones included
        self.edits = 0  # changes of anything but by ``advance``: who remembers rows looks at it
        self.tail_owned = True  # nobody else reads the page that the next slot goes to
        self.open_from: int | None = None  # pages from this slot on are written later than their slots are counted
        self.dead: Int32s | None = None  # int32 [num_rows] cells in front without a page; None: none in any row
        self.num_dead = 0  # of all rows
        self.due = NEVER  # tokens from which on more of them can go

    # Reading --------------------------------------------------------------------------------------------------------

    def row(self, layer: int, head: int) -> int:
        """The row that covers this kv-head."""
        return (layer * self.fmt.num_kv_heads + head) // self.run

    def offset(self, layer: int, head: int) -> int:
        """What is added to the row's run bases to get this kv-head's pages."""
        return (layer * self.fmt.num_kv_heads + head) % self.run

    def length(self, layer: int, head: int) -> int:
        """Slots that this kv-head holds."""
        return int(self.lens[self.row(layer, head)])

    def locate(self, layer: int, head: int, slot: int) -> tuple[int, int]:
        """Page id and slot within the page (the kernels do this in bulk; this is for tests and audits)."""
        column, inside = divmod(slot, self.fmt.page_size)
        return int(self.bases[self.row(layer, head), column]) + self.offset(layer, head), inside

    def runs(self) -> Int32s:
        """Bases of all runs held, row by row."""
        if self.num_rows == 1:
            return self.bases[0, self.num_dead : self.counts[0]]
        return self.bases[:, : self.counts.max()][self._held(int(self.counts.max()))]

    def pages(self) -> Int32s:
        """Ids of all pages held."""
        return expand_runs(self.runs(), self.run, 1)

    def of_layers(self, layers: tuple[int, ...]) -> PageTable:
        """The rows of these layers, as they are now, as the table of a model that has no others; to be read only."""
        per_layer = self.num_rows // self.fmt.num_layers
        rows = (np.array(layers)[:, None] * per_layer + np.arange(per_layer)).ravel()
        part = PageTable(replace(self.fmt, num_layers=len(layers)), self.granularity)
        part.bases, part.counts, part.lens = self.bases[rows], self.counts[rows], self.lens[rows]
        part.num_tokens, part.kept_at, part.pristine = self.num_tokens, self.kept_at, self.pristine
        if self.dead is not None:
            part._bury(self.dead[rows])
        part.measure()
        return part

    def missing_runs(self, num_tokens: int) -> Int32s:
        """Runs to append to each row for ``num_tokens`` more slots."""
        page_size = self.fmt.page_size
        missing: Int32s = np.maximum((self.lens + np.int32(num_tokens + page_size - 1)) // page_size - self.counts, 0)
        return missing

    def open_cells(self) -> tuple[npt.NDArray[np.intp], Int32s]:
        """Rows whose last page is partly written, and the column of that page: what the next slot would write into.
        With ``open_from`` all columns that are still to be written.
        """
        size = np.int32(self.fmt.page_size)
        if self.open_from is None:
            rows = np.flatnonzero(self.lens % size)
            return rows, self.lens[rows] // size
        first, end = np.minimum(self.open_from, self.lens) // size, -(-self.lens // size)
        columns = np.arange(end.max(initial=0), dtype=np.int32)
        rows, found = np.nonzero((columns >= first[:, None]) & (columns < end[:, None]))
        return rows, found.astype(np.int32)

    # Changing: the caller has the references in hand ----------------------------------------------------------------

    def adopt(self, columns: Int32s, dead: Int32s | None = None) -> None:
        """An empty table takes full pages that exist: ``columns`` [num_columns, num_rows] of run bases, 0 where a row's
        first cells are ``dead``.
        """
        assert self.num_tokens == 0
        if dead is not None:
            self._bury(dead)
        num = len(columns)
        self._widen(num)
        self.bases[:, :num] = columns.T
        self.counts += np.int32(num)
        self.advance(num * self.fmt.page_size)
        self.measure()

    def append(self, missing: Int32s, runs: Int32s) -> None:
        """Row r takes ``missing[r]`` of these runs; the runs of one column lie side by side in ``runs``."""
        first = int(missing[0])
        if (missing == first).all() and (self.counts == self.counts[0]).all():
            start = int(self.counts[0])
            self._widen(start + first)
            self.bases[:, start : start + first] = runs.reshape(first, self.num_rows).T
        else:
            ends = self.counts + missing
            self._widen(int(ends.max()))
            columns = np.arange(self.bases.shape[1])[:, None]
            column, row = np.nonzero((columns >= self.counts) & (columns < ends))
            self.bases[row, column] = runs
        self.counts += missing
        self.measure()

    def advance(self, num_tokens: int) -> None:
        """``num_tokens`` more slots of every row are written."""
        if self.num_rows == 1:
            self.lens[0] += num_tokens  # a third of what an array's sum costs where caches are cold
        else:
            self.lens += np.int32(num_tokens)
        self.num_tokens += num_tokens
        self.room -= num_tokens

    def drop(self, dead: Int32s) -> Int32s:
        """So many cells in front of each row give up their run: the bases of those that had one."""
        had = np.zeros_like(dead) if self.dead is None else self.dead
        dead = np.maximum(dead, had)  # which never comes back
        assert (dead * np.int32(self.fmt.page_size) <= self.lens).all(), "pages that are not written yet are not dead"
        start, end = int(had.min()), int(dead.max())
        columns = np.arange(start, end)
        going = (columns >= had[:, None]) & (columns < dead[:, None])
        part = self.bases[:, start:end]
        runs: Int32s = part[going]
        part[going] = 0
        self._bury(dead)
        self.measure()
        return runs

    def _bury(self, dead: Int32s) -> None:
        self.num_dead = int(dead.sum())
        self.dead = dead if self.num_dead else None

    def cut(self, lens: Int32s, lengths: list[int] | None = None) -> Int32s:
        """Rows become this short and give up the runs beyond: their bases. Reserved runs go as well. ``lengths``: the
        same numbers, where they are known.
        """
        assert self.dead is None or (self.dead * np.int32(self.fmt.page_size) <= lens).all(), "cut into what is gone"
        if self.num_rows > 1:
            lengths, had = lengths or lens.tolist(), self.counts.tolist()
            if min(lengths) == max(lengths) and min(had) == max(had):
                return self._cut_even(lens, lengths[0], had[0])
            if self.num_rows <= FEW_ROWS:
                return self._cut_few(lens, lengths, had)
        counts = -(-lens // np.int32(self.fmt.page_size))
        if self.num_rows == 1:
            beyond = slice(int(counts[0]), int(self.counts[0]))
            runs = self.bases[0, beyond].copy()
            self.bases[0, beyond] = 0
        else:
            columns = np.arange(int(self.counts.max()))
            outside = (columns >= counts[:, None]) & (columns < self.counts[:, None])
            runs = self.bases[:, : len(columns)][outside]
            self.bases[:, : len(columns)][outside] = 0
        self.lens, self.counts, self.tail_owned = lens, counts, False
        self.measure()
        return runs

    def was_cut(self, room: int, num_pages: int, tail_owned: bool) -> None:
        """What ``cut`` does was done to ``bases``, ``counts`` and ``lens`` in place."""
        self.room, self.num_pages, self.tail_owned = room, num_pages, tail_owned
        self.edits += 1

    def _cut_even(self, lens: Int32s, length: int, had: int) -> Int32s:
        """``cut`` of rows that have ``had`` runs each and become equally long, as in nearly all acts: plain numbers."""
        left = -(-length // self.fmt.page_size)
        runs: Int32s = self.bases[:, left:had].flatten()
        self.bases[:, left:had] = 0
        self.counts[:] = left
        self.lens, self.tail_owned = lens, False
        self.room = left * self.fmt.page_size - length
        self.num_pages = (left * self.num_rows - self.num_dead) * self.run
        self.edits += 1
        return runs

    def _cut_few(self, lens: Int32s, lengths: list[int], had: list[int]) -> Int32s:
        """``cut`` of few rows one by one, in plain numbers: of 8 rows in half of the time."""
        size, runs = self.fmt.page_size, [NONE]
        left = [-(-length // size) for length in lengths]
        for row, (first, end) in enumerate(zip(left, had, strict=True)):
            if first < end:
                runs.append(self.bases[row, first:end].copy())
                self.bases[row, first:end] = 0
        self.counts[:] = left
        self.lens, self.tail_owned = lens, False
        self.room = min(count * size - length for count, length in zip(left, lengths, strict=True))
        self.num_pages = (sum(left) - self.num_dead) * self.run
        self.edits += 1
        return np.concatenate(runs)

    def copy(self) -> PageTable:
        """A second table over the written pages of this one."""
        twin = PageTable(self.fmt, self.granularity)
        twin.lens = self.lens.copy()
        twin.counts = -(-self.lens // np.int32(self.fmt.page_size))
        twin.bases = self.bases[:, : max(1, int(twin.counts.max()))].copy()
        twin.dead, twin.num_dead, twin.due = self.dead, self.num_dead, self.due  # arrays that nobody writes into
        twin.bases[~twin._held(twin.bases.shape[1])] = 0
        twin.num_tokens, twin.kept_at, twin.pristine = self.num_tokens, self.kept_at, self.pristine
        twin.tail_owned = False
        twin.measure()
        return twin

    def refine(self, granularity: Granularity = Granularity.HEAD) -> None:
        """Finer rows from now on, over the same pages: one for each kv-head, or for each layer."""
        run = self.fmt.pages_per_run(granularity)
        parts = self.run // run
        assert parts > 0, f"a table of granularity {self.granularity} has no rows of {granularity}"
        wide = self.bases[:, None, :] + np.arange(parts, dtype=np.int32)[:, None] * np.int32(run)
        wide[~np.broadcast_to(self._held(self.bases.shape[1])[:, None, :], wide.shape)] = 0
        self.bases = wide.reshape(-1, self.bases.shape[1])
        self.counts, self.lens = np.repeat(self.counts, parts), np.repeat(self.lens, parts)
        self.granularity, self.num_rows, self.run = granularity, len(self.bases), run
        if self.dead is not None:
            self._bury(np.repeat(self.dead, parts))
        self.edits += 1

    def rebase(self, rows: object, columns: object, runs: Int32s) -> None:
        """Other runs in these cells (rows and columns as numpy indexes take them)."""
        self.bases[rows, columns] = runs  # type: ignore[index]
        self.edits += 1

    def measure(self) -> None:
        """Recounts ``room`` and ``num_pages``."""
        self.room = int((self.counts * np.int32(self.fmt.page_size) - self.lens).min())
        self.num_pages = (int(self.counts.sum()) - self.num_dead) * self.run
        self.edits += 1

    def _held(self, width: int) -> npt.NDArray[np.bool_]:
        columns = np.arange(width)
        held: npt.NDArray[np.bool_] = columns < self.counts[:, None]
        return held if self.dead is None else held & (columns >= self.dead[:, None])

    def _widen(self, width: int) -> None:
        if width > self.bases.shape[1]:
            wider = np.zeros((self.num_rows, max(width, 2 * self.bases.shape[1])), np.int32)
            wider[:, : self.bases.shape[1]] = self.bases
            self.bases = wider


@dataclass(frozen=True, slots=True)
class SlotMoves:
    """Moves of single slots, in page ids: slot ``dst_slots[i]`` of page ``dst_pages[i]`` becomes what ``src_slots[i]``
    of ``src_pages[i]`` was before all of them. Four int32 arrays of one length; iterates as tuples in that order.
    """

    src_pages: Int32s
    src_slots: Int32s
    dst_pages: Int32s
    dst_slots: Int32s

    @classmethod
    def join(cls, parts: list[SlotMoves]) -> SlotMoves:
        """All moves of several (none: no moves)."""
        if len(parts) == 1:
            return parts[0]
        none = np.zeros(0, np.int32)
        return cls(
            np.concatenate([none, *(part.src_pages for part in parts)]),
            np.concatenate([none, *(part.src_slots for part in parts)]),
            np.concatenate([none, *(part.dst_pages for part in parts)]),
            np.concatenate([none, *(part.dst_slots for part in parts)]),
        )

    def __len__(self) -> int:
        return len(self.src_pages)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        columns = (self.src_pages, self.src_slots, self.dst_pages, self.dst_slots)
        return iter(zip(*(column.tolist() for column in columns), strict=True))
