"""Pages for the slots of a step: those that are missing, and copies of shared ones that would be written.

No torch: copies are page ids, which somebody runs before the step that they are reserved for.
"""

from __future__ import annotations

from ..core.types import Granularity, KVFormat
from .pages import Int32s, PagePool
from .room import Room
from .table import PageTable, expand_runs
from .windows import Windows


class Reservations:
    """Of the tables of one KV format. ``num_copies`` pages were copied, ``num_refined`` tables became finer."""

    def __init__(self, fmt: KVFormat, pool: PagePool, room: Room, windows: Windows | None) -> None:
        self._fmt, self._pool, self._room, self._windows = fmt, pool, room, windows
        self._copies: dict[int, int] = {}  # page to be written -> page to be read, before the next step
        self.num_copies = self.num_refined = 0

    def reserve(self, table: PageTable, num_tokens: int) -> bool:
        """Pages for the next ``num_tokens`` slots of every row; shared pages among them are replaced by copies.

        Free pages first, then growth of the pool, then cached prefixes. Where there are enough pages but no whole runs,
        the table becomes one of granularity ``head``. False if nothing of this is enough: then no table, page or entry
        has changed.
        """
        if table.tail_owned and table.room >= num_tokens:
            return True
        return self._reserve(table, num_tokens) or self._reserve_scattered(table, num_tokens)

    def take_copies(self) -> list[tuple[int, int]]:
        """Page copies (source, target) that must run before the next step: all reads first, targets differ."""
        copies = [(source, target) for target, source in self._copies.items() if self._pool.refs[target]]
        self._copies.clear()
        return copies

    def _reserve(self, table: PageTable, num_tokens: int) -> bool:
        missing, run = table.missing_runs(num_tokens), table.run
        num_missing = int(missing.sum())
        rows, columns = table.open_cells()
        open_runs = table.bases[rows, columns]
        if not self._room.make(run, lambda: num_missing + self._num_shared(table, open_runs, run)):
            return False
        shared = self._pool.shared(open_runs, run)
        runs = self._room.take(run, num_missing + int(shared.sum()))
        if num_missing:
            table.append(missing, runs[:num_missing])
        if shared.any():
            table.rebase(rows[shared], columns[shared], runs[num_missing:])
            self._copy(open_runs[shared], runs[num_missing:], run)
            self._pool.unref_runs(open_runs[shared], run)
        table.tail_owned = True
        return True

    def _reserve_scattered(self, table: PageTable, num_tokens: int) -> bool:
        """Where no whole run is free any more, single pages serve as well: those that policies freed, from any block.
        The table has a row for each head from then on; or for each layer, where those that windows freed are enough.
        """
        for granularity in (Granularity.HEAD,) if self._windows is None else (Granularity.LAYER, Granularity.HEAD):
            run = self._fmt.pages_per_run(granularity)
            if run < table.run and self._make_scattered(table, num_tokens, run):
                table.refine(granularity)
                self.num_refined += 1
                return self._reserve(table, num_tokens)
        return False

    def _make_scattered(self, table: PageTable, num_tokens: int, run: int) -> bool:
        num_missing = int(table.missing_runs(num_tokens).sum()) * (table.run // run)
        open_runs = expand_runs(table.bases[table.open_cells()], table.run, run)
        return self._room.make(run, lambda: num_missing + self._num_shared(table, open_runs, run))

    def _num_shared(self, table: PageTable, runs: Int32s, run: int) -> int:
        return 0 if table.tail_owned else int(self._pool.shared(runs, run).sum())

    def _copy(self, old: Int32s, new: Int32s, run: int) -> None:
        """Notes page copies. A page that is itself still to be copied is read where its content is now."""
        sources, targets = expand_runs(old, run, 1).tolist(), expand_runs(new, run, 1).tolist()
        self.num_copies += len(targets)
        for source, target in zip([self._copies.get(page, page) for page in sources], targets, strict=True):
            self._copies[target] = source
