"""Cached pages whose sequences went on: of layers with a sliding window nobody reads them, other layers' are read on.

An entry of the prefix cache is *passed* once a live sequence reads on without its windowed pages. They stay cached,
since another text may branch off there, until pages run out: then the entry becomes *thin*. It keeps its place and the
pages of layers without a window; a chain of entries is a hit where those that the windows reach back to from its end
are whole.

    chain of a text      ░░░ ░░░ ░░░ ░░░ ▓▓▓ ▓▓▓           ░ thin, ▓ whole
    hits that end at                         ┊   ┊         windows of two pages: after 6 (and not after 2 or 5)

What was passed longest ago goes first, in one line with unused leaves (`PrefixCache.give_up`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .pages import Int32s, PagePool
from .table import expand_runs
from .windows import Windows

if TYPE_CHECKING:
    from .prefix import Entry

GONE = -1
"""In place of a run that an entry gave up."""


class Thinning:
    """Of one prefix cache, which tells it of every entry that comes into use or falls out of it."""

    def __init__(self, pool: PagePool, windows: Windows) -> None:
        self.windows, self._pool = windows, pool
        self._line: OrderedDict[Entry, int] = OrderedDict()  # whole and passed -> tick; least recently passed first
        self._pinned: Counter[Entry] = Counter()  # whole, at the end of a pinned text
        self._num_thin_idle = self._num_passed_used = 0

    @property
    def spare_pages(self) -> int:
        """By how many pages more than a block for each idle entry the cache could give up (fewer: below 0)."""
        return (self._num_passed_used - self._num_thin_idle) * self.windows.pages_per_column

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._line

    # Told by the cache ----------------------------------------------------------------------------------------------

    def used(self, entry: Entry) -> None:
        """The entry was idle and is not any more."""
        self._num_thin_idle -= entry.thin
        self._num_passed_used += entry in self._line

    def idle(self, entry: Entry) -> None:
        """Nobody uses the entry any more."""
        self._num_thin_idle += entry.thin
        self._num_passed_used -= entry in self._line

    def left(self, entry: Entry) -> bool:
        """An idle entry is out of the tree; whether it was in the line."""
        self._num_thin_idle -= entry.thin
        return self._line.pop(entry, None) is not None

    def is_back(self, entry: Entry, in_line: bool) -> None:
        """Undoes ``left``."""
        self._num_thin_idle += entry.thin
        if in_line:
            self._line[entry] = entry.tick
            self._line.move_to_end(entry, last=False)

    # The line -------------------------------------------------------------------------------------------------------

    def passed(self, entry: Entry, tick: int) -> None:
        """A sequence that the entry is a part of reads it no more in layers with windows."""
        if entry.thin:
            return
        if entry not in self._line:
            self._num_passed_used += entry.users > 0
        self._line[entry] = tick
        self._line.move_to_end(entry)

    def oldest(self) -> tuple[Entry, int] | None:
        """Of the line, what nobody reads and no pin keeps whole, and when it was passed. What is in the way goes to the
        end.
        """
        for _ in range(len(self._line)):
            entry, tick = next(iter(self._line.items()))
            if not self._pinned[entry] and not self._is_read(entry):
                return entry, tick
            self._line.move_to_end(entry)
        return None

    def thin(self, entry: Entry) -> tuple[Int32s, int]:
        """The entry gives up its windowed pages, which stay referenced: their bases, and pages of a run."""
        fmt = self._pool.fmt
        if len(entry.runs) < fmt.num_layers:
            entry.runs, entry.run = expand_runs(entry.runs, entry.run, fmt.num_kv_heads), fmt.num_kv_heads
        rows = self.windows.rows(len(entry.runs))
        gone = entry.runs[rows]
        entry.runs = np.where(rows, np.int32(GONE), entry.runs)
        if self._line.pop(entry, None) is not None:
            self._num_passed_used -= entry.users > 0
        entry.thin = True
        self._num_thin_idle += entry.users == 0
        return gone, entry.run

    def thicken(self, entry: Entry) -> None:
        """The entry has all of its pages again."""
        self._num_thin_idle -= entry.users == 0
        entry.thin = False

    def unthin(self, entry: Entry, runs: Int32s, run: int) -> None:
        """Undoes ``thin``; these were its runs."""
        self.thicken(entry)
        entry.runs, entry.run = runs, run
        self._line[entry] = entry.tick
        self._line.move_to_end(entry, last=False)
        self._num_passed_used += entry.users > 0

    def _is_read(self, entry: Entry) -> bool:
        """Whether somebody has some of its windowed pages. Who reads an entry mostly has the first of them, so that is
        looked at before all are: a long text that many go on from may be in the way whole, and is passed each time.
        """
        refs, fmt, rows = self._pool.refs, self._pool.fmt, len(entry.runs)
        layer = self.windows.first_layer
        inside = layer * fmt.num_kv_heads if rows < fmt.num_layers else 0
        if refs[entry.runs[layer * rows // fmt.num_layers] + inside] > 1:
            return True
        return int(refs[self._pages(entry)].max()) > 1

    def _pages(self, entry: Entry) -> Int32s:
        """Its windowed pages."""
        fmt = self._pool.fmt
        runs, run = entry.runs, entry.run
        if len(runs) < fmt.num_layers:
            runs, run = expand_runs(runs, run, fmt.num_kv_heads), fmt.num_kv_heads
        return expand_runs(runs[self.windows.rows(len(runs))], run, 1)

    # Chains ---------------------------------------------------------------------------------------------------------

    def usable(self, chain: list[Entry]) -> list[Entry]:
        """As much of a chain as ends in entries that are whole, as far back as windows reach."""
        best, last_thin, size = 0, -1, self._pool.fmt.page_size
        for number, entry in enumerate(chain):
            if entry.thin:
                last_thin = number
            if last_thin < self.windows.reach((number + 1) * size):
                best = number + 1
        return chain[:best]

    def reached(self, chain: Sequence[Entry]) -> Sequence[Entry]:
        """What of a chain a sequence still reads whole."""
        return chain[self.windows.reach(len(chain) * self._pool.fmt.page_size) :]

    def pin(self, entries: Sequence[Entry]) -> None:
        """These stay whole until ``unpin``."""
        self._pinned.update(entries)

    def unpin(self, entries: Sequence[Entry]) -> None:
        """Undoes ``pin``."""
        self._pinned.subtract(entries)
        for entry in entries:
            if not self._pinned[entry]:
                del self._pinned[entry]

    # For the auditor ------------------------------------------------------------------------------------------------

    def audit(self, entries: set[Entry]) -> None:
        """Raises AssertionError unless the counts are right."""
        for entry in self._line:
            assert entry in entries, f"entry {entry.key.hex()} is in line to be thinned, but gone"
            assert not entry.thin, f"entry {entry.key.hex()} is in line to be thinned, but is thin"
        for entry in entries:
            if entry.thin:
                rows = self.windows.rows(len(entry.runs))
                right = ((entry.runs == GONE) == rows).all()
                assert right, f"entry {entry.key.hex()} is thin, with the runs {entry.runs.tolist()}"
        thin = sum(entry.thin and not entry.users for entry in entries)
        used = sum(entry.users > 0 for entry in self._line)
        counted = self._num_thin_idle, self._num_passed_used
        assert counted == (thin, used), f"{thin} thin idle entries and {used} passed used ones, but counted {counted}"
