"""Slots leave live sequences: others move up in their rows, shared pages are replaced first, tail pages are free.

No torch: what has to move is handed to the storage as page ids and slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .compaction import Gaps, RowPlan, plan_rows
from .live import LiveSequence, Trails
from .pages import Int32s, PagePool
from .prefix import PrefixCache
from .room import Room
from .table import NONE, PageTable, SlotMoves

Kept = Mapping[tuple[int, int] | tuple[int | None, int | None], Sequence[int] | Int32s]


class Evictions:
    """Evictions from the sequences of one pool; ``num_dropped``: slots that they gave up so far, of all heads."""

    def __init__(self, pool: PagePool, prefix: PrefixCache | None, room: Room, trails: Trails) -> None:
        self._pool, self._prefix, self._room, self._trails = pool, prefix, room, trails
        self.num_dropped = 0

    def keep_many(self, sequence: LiveSequence, kept: Kept, rewrite: bool) -> SlotMoves | None:
        """Slots that stay, ascending, per (layer, head); heads not named stay as they are. They move up to 0 … n-1.

        Shared pages that would be written are replaced, for these rows only; pages past the end are free at once,
        though the returned moves may still read them: run the moves (after ``take_copies``) before the next step. Pages
        that were reserved but not written go back too. The sequence's later pages are not offered to the prefix cache.
        With ``rewrite`` every page of these rows is the sequence's own afterwards, so that slots may be overwritten.

        Returns None, and nothing has changed, when there is no room for the replacements. Raises ConfigError when the
        table's rows cover more heads than were named, or the slots are not ascending slots of the head.
        """
        plans = plan_rows(sequence.table, kept, rewrite)
        return self._keep(sequence, plans) if plans else SlotMoves.join([])

    def keep_ends(self, sequence: LiveSequence, sinks: int, first: int) -> SlotMoves | None:
        """As ``keep_many`` of all heads, in fewer steps where the table has one row: the first ``sinks`` slots stay and
        those from ``first`` on.
        """
        table = sequence.table
        if first <= sinks:
            return SlotMoves.join([])
        if table.num_rows > 1:
            held = int(table.lens[0])
            kept = np.concatenate([np.arange(sinks, dtype=np.int32), np.arange(first, held, dtype=np.int32)])
            return self.keep_many(sequence, {(None, None): kept}, False)
        return self._keep(sequence, [RowPlan.of_ends(table, sinks, first)])

    def keep_mask(self, sequence: LiveSequence, mask: npt.NDArray[np.bool_], rewrite: bool) -> SlotMoves | Gaps | None:
        """As ``keep_many``, for a table of granularity ``head``: bool ``[rows, N]`` of its slots that stay. Where no
        page that would be written is shared, which is any act but a sequence's first, all rows are moved at once.
        ``rewrite``: of rows that lose slots, any may be overwritten.
        """
        table = sequence.table
        assert table.run == 1, "a mask by rows for rows that cover several heads"
        lens: Int32s = mask.sum(axis=1, dtype=np.int32)
        losing = lens < table.lens
        if not losing.any():
            return SlotMoves.join([])
        size = table.fmt.page_size
        bases = table.bases[:, : table.fmt.blocks_for(mask.shape[1])].copy()
        first = np.zeros(len(mask), np.intp) if rewrite else mask.argmin(axis=1) // size
        columns, last = np.arange(bases.shape[1]), -(-lens // np.int32(size))
        written = (columns >= first[:, None]) & (columns < last[:, None]) & losing[:, None]
        if sequence.node is not None or (self._pool.refs[bases[written]] > 1).any():
            heads = table.fmt.num_kv_heads
            slots: Kept = {divmod(row, heads): np.flatnonzero(one).astype(np.int32) for row, one in enumerate(mask)}
            return self.keep_many(sequence, slots, rewrite)
        self.num_dropped += int((table.lens - lens).sum())
        self._pool.unref_runs(table.cut(lens), 1)
        table.pristine, table.kept_at = False, table.num_tokens
        return Gaps(bases, mask, size)

    def own_rows(self, sequence: LiveSequence) -> Int32s | None:
        """Pages of a table of granularity ``head``, int32 ``[rows, W]``, where all of them are the sequence's alone:
        its slots may be moved within their rows at once, and ``shorten`` called. None: by ``keep_mask`` only.
        """
        return sequence.table.bases if sequence.table.run == 1 and self.owns(sequence) else None

    def owns(self, sequence: LiveSequence) -> bool:
        """Whether all pages are the sequence's alone, and nobody is offered any."""
        if sequence.node is not None:
            return False
        if not sequence.alone:
            sequence.alone = not (self._pool.refs[sequence.table.pages()] > 1).any()
        return sequence.alone

    def room_for_copies(self, sequences: list[LiveSequence], run: int, needed: Callable[[], int]) -> Int32s | None:
        """Runs with one owner for the copies of shared pages that evictions of these sequences write: ``needed()`` of
        them, which is asked again as cached prefixes go. Their later pages are not offered to the prefix cache. None,
        and nothing has changed, where there is no room.
        """
        if not self._leave_prefixes(sequences, run, needed):
            return None
        num = needed()
        return self._room.take(run, num) if num else NONE

    def _leave_prefixes(self, sequences: list[LiveSequence], run: int, needed: Callable[[], int]) -> bool:
        """Sees to ``needed()`` free runs, and nothing of their text is in the prefix cache for them any more. Where
        that cannot be, or something raises, all hold what they held.
        """
        prefix, made = self._prefix, False
        held = [sequence.node for sequence in sequences if sequence.node is not None]
        if prefix is not None:
            for node in held:
                prefix.release(node)  # its own entries may have to go: then the pages are its own
        try:
            made = self._room.make(run, needed)
        finally:
            if prefix is not None and not made:
                for node in held:
                    prefix.hold(node)
        if made:
            for sequence in sequences:
                self._trails.left(sequence)
        return made

    def was_cut(self, sequence: LiveSequence, dropped: int, num_cut: int, room: int, tail_owned: bool) -> None:
        """Its rows were cut in place, by ``dropped`` slots of all heads and ``num_cut`` runs: what is left to be noted,
        after ``room_for_copies``.
        """
        table = sequence.table
        table.was_cut(room, table.num_pages - num_cut * table.run, tail_owned)
        if dropped:
            self.num_dropped += dropped
            table.pristine, table.kept_at = False, table.num_tokens

    def shorten(self, sequence: LiveSequence, lens: Int32s) -> int:
        """Slots behind these ``[rows]`` are gone, after ``own_rows``; how many those were."""
        table, lengths = sequence.table, lens.tolist()
        dropped: int = sum(table.lens.tolist()) - sum(lengths)
        if not dropped:
            return 0
        self.num_dropped += dropped
        self._pool.free_owned(table.cut(lens, lengths))
        table.pristine, table.kept_at, table.tail_owned = False, table.num_tokens, True
        return dropped

    def _keep(self, sequence: LiveSequence, plans: list[RowPlan]) -> SlotMoves | None:
        table = sequence.table
        dirty = np.concatenate([table.bases[plan.row, plan.dirty] for plan in plans])
        if not self._leave_prefixes([sequence], table.run, lambda: int(self._pool.shared(dirty, table.run).sum())):
            return None
        return self._compact(table, plans, dirty)

    def _compact(self, table: PageTable, plans: list[RowPlan], dirty: Int32s) -> SlotMoves:
        """Fresh runs for the shared ones among ``dirty``, then the moves, then the runs past the ends are given up."""
        shared = self._pool.shared(dirty, table.run)
        target, lens = dirty.copy(), table.lens.copy()
        if shared.any():
            target[shared] = self._room.take(table.run, int(shared.sum()))
        parts, first = [], 0
        for plan in plans:
            mine = slice(first, first + plan.num_dirty)
            parts.append(plan.moves(table, target[mine], bool(plan.num_dirty and shared[first])))
            table.rebase(plan.row, plan.dirty, target[mine])
            plan.link(table)
            lens[plan.row] = len(plan.slots)
            first += plan.num_dirty
        self.num_dropped += int((table.lens - lens).sum()) * table.run
        self._pool.unref_runs(np.concatenate([dirty[shared], table.cut(lens)]), table.run)
        table.pristine, table.kept_at = False, table.num_tokens
        return SlotMoves.join([part for part in parts if part is not None])
