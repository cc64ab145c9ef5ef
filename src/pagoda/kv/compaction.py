"""Eviction of slots from one row of a table: which runs are written when the kept slots move up.

Slots that stay move to 0 … n-1. From the first gap on, every slot moves, so the runs that are written are the last::

    slots kept     0 1 2 3   4 . 6 .   8 9 . .        page_size 4
    run            │ as is │ dirty   │ freed │        first_dirty 1, num_dirty 1
    afterwards     0 1 2 3   4 6 8 9

Where a whole number of pages goes and all that follows stays (a window that moves on), runs are linked instead::

    slots kept     0 1 . .   . . 6 7   8 9 10 11       first_moved 2
    afterwards     0 1 6 7   8 9 10 11                 run 2 became the second: num_unlinked 1, two slots moved
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import ConfigError
from .pages import Int32s
from .table import PageTable, SlotMoves


@dataclass(slots=True)
class RowPlan:
    """What ``KVManager.keep`` does to one row."""

    row: int
    slots: Int32s
    first_moved: int
    first_dirty: int
    num_dirty: int
    num_unlinked: int = 0
    """Runs after the dirty ones that leave the row; those that follow them move up as they are."""

    @classmethod
    def make(cls, table: PageTable, row: int, kept: Int32s, rewrite: bool = False) -> RowPlan:
        """Raises ConfigError for slots that the row does not have. ``rewrite``: all runs that stay are written."""
        num, held = len(kept), int(table.lens[row])
        if num and (kept[0] < 0 or kept[-1] >= held or (kept[1:] <= kept[:-1]).any()):
            raise ConfigError(
                f"slots to keep in row {row} not in order; accepted: 0 … {held - 1}, each once, ascending"
            )
        first_moved = 0 if rewrite else int(np.count_nonzero(kept == np.arange(num, dtype=np.int32)))
        page_size = table.fmt.page_size
        first_dirty = first_moved // page_size
        num_dirty = -(-num // page_size) - first_dirty if first_moved < num else 0
        if not num_dirty or rewrite or (gap := int(kept[-1]) - num + 1) % page_size:
            return cls(row, kept, first_moved, first_dirty, num_dirty)
        linked = -(-int(np.searchsorted(kept - np.arange(num, dtype=np.int32), gap)) // page_size)
        if linked * page_size >= num:
            return cls(row, kept, first_moved, first_dirty, num_dirty)
        return cls(row, kept, first_moved, first_dirty, linked - first_dirty, gap // page_size)

    @classmethod
    def of_ends(cls, table: PageTable, sinks: int, first: int) -> RowPlan:
        """What ``make`` finds for a table of one row of which the first ``sinks`` slots stay and those from ``first``
        on, fewer than all.
        """
        size, gap = table.fmt.page_size, first - sinks
        num = int(table.lens[0]) - gap
        assert 0 <= sinks < first < num + gap
        kept = np.arange(num, dtype=np.int32)
        kept[sinks:] += np.int32(gap)
        first_dirty, linked = sinks // size, -(-sinks // size)
        if gap % size == 0 and linked * size < num:
            return cls(0, kept, sinks, first_dirty, linked - first_dirty, gap // size)
        return cls(0, kept, sinks, first_dirty, -(-num // size) - first_dirty)

    @property
    def dirty(self) -> slice:
        """Columns that are written."""
        return slice(self.first_dirty, self.first_dirty + self.num_dirty)

    def moves(self, table: PageTable, target: Int32s, first_is_fresh: bool) -> SlotMoves | None:
        """Moves into the runs ``target`` [num_dirty]; into a fresh first one, slots that stay in place move as well."""
        if not self.num_dirty:
            return None
        page_size = table.fmt.page_size
        start = self.first_dirty * page_size if first_is_fresh else self.first_moved
        end = min(len(self.slots), self.dirty.stop * page_size)
        sources = self.slots[start:end]
        targets = np.arange(start, end, dtype=np.int32)
        heads = np.arange(table.run, dtype=np.int32)[:, None]
        src_pages = table.bases[self.row, sources // page_size] + heads
        dst_pages = target[targets // page_size - self.first_dirty] + heads
        src_slots, dst_slots = (
            np.broadcast_to(slots % page_size, src_pages.shape).flatten() for slots in (sources, targets)
        )
        return SlotMoves(src_pages.ravel(), src_slots, dst_pages.ravel(), dst_slots)

    def link(self, table: PageTable) -> None:
        """The runs that leave go behind all others, where ``PageTable.cut`` takes them."""
        if self.num_unlinked:
            first, stop = self.dirty.stop, int(table.counts[self.row])
            behind = table.bases[self.row, first:stop]
            moved = np.concatenate([behind[self.num_unlinked :], behind[: self.num_unlinked]])
            table.rebase(self.row, slice(first, stop), moved)


def plan_rows(
    table: PageTable,
    kept: Mapping[tuple[int, int] | tuple[int | None, int | None], Sequence[int] | Int32s],
    rewrite: bool = False,
) -> list[RowPlan]:
    """A plan for each row that loses slots. Raises ConfigError for a name without its own rows, or wrong slots."""
    plans: dict[int, RowPlan] = {}
    for (layer, head), slots in kept.items():
        array = np.asarray(slots, np.int32).reshape(-1)
        for row in rows_of(table, layer, head):
            if row in plans:
                raise ConfigError(f"slots to keep are given twice for layer {layer}, head {head}; accepted: once")
            plans[row] = RowPlan.make(table, row, array, rewrite)
    return [plan for plan in plans.values() if len(plan.slots) < table.lens[plan.row]]


@dataclass(frozen=True, slots=True)
class Gaps:
    """All rows of a table of granularity ``head`` close their gaps in place: ``bases`` int32 ``[rows, W]``, the pages
    of each, ``mask`` bool ``[rows, N]`` of slots that stay, none beyond a row's length.
    """

    bases: Int32s
    mask: npt.NDArray[np.bool_]
    page_size: int

    def __len__(self) -> int:
        return len(self.bases)

    def moves(self) -> SlotMoves:
        """The same, slot by slot."""
        size, lens = np.int32(self.page_size), self.mask.sum(axis=1, dtype=np.int32)
        rows, slots = self.mask.nonzero()
        slots = slots.astype(np.int32)
        targets = np.arange(len(slots), dtype=np.int32) - (lens.cumsum(dtype=np.int32) - lens)[rows]
        moved = targets != slots
        rows, slots, targets = rows[moved], slots[moved], targets[moved]
        source, target = self.bases[rows, slots // size], self.bases[rows, targets // size]
        return SlotMoves(source, slots % size, target, targets % size)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        return iter(self.moves())


def rows_of(table: PageTable, layer: int | None, head: int | None) -> range:
    """The rows of the named heads (None: all of them). Raises ConfigError where a row covers more than was named."""
    fmt, grain = table.fmt, table.granularity
    named = 1 if head is not None else fmt.num_kv_heads if layer is not None else fmt.pages_per_block
    if named < table.run:
        raise ConfigError(
            f"cannot evict in layer {layer}, head {head} of a table of granularity {grain.value!r}, whose rows cover "
            f"more; accepted: any with 'head', whole layers with 'layer', all layers at once with 'sequence'"
        )
    known = 0 <= (layer or 0) < fmt.num_layers and 0 <= (head or 0) < fmt.num_kv_heads
    if not known or (layer is None and head is not None):
        most = f"layers below {fmt.num_layers}, heads below {fmt.num_kv_heads} with their layer"
        raise ConfigError(f"cannot evict in layer {layer}, head {head}; accepted: {most}")
    first = table.row(layer or 0, head or 0)
    return range(first, first + named // table.run)
