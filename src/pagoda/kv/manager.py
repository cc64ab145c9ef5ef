"""The engine's one door to KV: which pages a sequence has, who else reads them, and who must copy first.

The life of a sequence::

    admit    opens a table over the pages that the prefix cache already has
    reserve  before a step: pages for the step's tokens; a shared page that would be written is replaced by a copy
    commit   after the step: the tokens are written; full pages are offered to the prefix cache, and those that no
             window of their layer reaches any more are given up
    keep     a policy drops slots: the rest moves up, tail pages are free again
    release  all references go; what the prefix cache has stays there

No torch: copies and moves are handed to the storage as page ids. Copies from ``take_copies`` are run before the step,
and before any moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..core.errors import RequestError
from ..core.types import Granularity, KVFormat
from .compaction import Gaps
from .evictions import Evictions, Kept
from .live import LiveSequence, Trails
from .pages import Int32s, PagePool
from .prefix import Entry, PrefixCache, PrefixStats, token_bytes
from .reservations import Reservations
from .room import Room
from .stats import KVStats
from .table import PageTable, SlotMoves, expand_runs
from .windows import Windows


class KVManager:
    """Page tables of all live sequences of one KV format.

    grow    is asked for a number of blocks when pages run out, and returns how many the ledger granted (0 … asked); the
            manager adds them to the pool. It is asked before cached prefixes are given up. What was granted stays with
            the pool, even when the reservation fails in the end; ``shrink`` gives it back.
    growable  how many it could get now, at most (default: as many as the pool may still grow by).
    settled   tokens, a multiple of the page size: only at multiples of it are a sequence's pages complete, so only then
              are they offered to the prefix cache, and only up to there taken from it (default: a page).
    windows   of the model's layers: what they do not reach back to is given up. None: every slot stays.
    """

    def __init__(
        self,
        fmt: KVFormat,
        pool: PagePool,
        prefix: PrefixCache | None,
        *,
        grow: Callable[[int, bool], int] | None = None,
        growable: Callable[[], int] | None = None,
        settled: int = 0,
        windows: Windows | None = None,
    ) -> None:
        self.fmt, self.pool, self.prefix = fmt, pool, prefix
        self._room, self._can_grow = Room(pool, prefix, grow, growable), grow is not None
        self._trails = Trails(pool, prefix)
        self._evictions = Evictions(pool, prefix, self._room, self._trails)
        self.windows = windows
        if prefix is not None and windows is not None:
            prefix.use_windows(windows)
        self._settled = settled or fmt.page_size
        self._sequences: dict[int, LiveSequence] = {}
        self._reservations = Reservations(fmt, pool, self._room, windows)

    # Life of a sequence ---------------------------------------------------------------------------------------------

    def admit(
        self,
        seq_id: int,
        tokens: Sequence[int],
        *,
        granularity: Granularity = Granularity.SEQUENCE,
        salt: str = "",
        adapter: str = "",
        use_prefix: bool = True,
    ) -> int:
        """Opens a table, of that granularity or, where it begins with pages of finer rows, of theirs; returns how many
        of the tokens are cached already (fewer than all: one is always computed).

        With ``use_prefix=False`` the sequence neither reads the prefix cache nor adds to it. Takes no free page.
        """
        assert seq_id not in self._sequences, f"sequence {seq_id} is admitted already"
        if not len(tokens):
            raise RequestError("a sequence without tokens; accepted: at least one token")
        node, chain = None, list[Entry]()
        if self.prefix is not None and use_prefix:
            node = self.prefix.root(salt, adapter)
            data, max_pages = self._full_pages(tokens)
            chain = self.prefix.match(node, data, max_pages, self._least_run(granularity))
            chain = chain[: len(chain) - len(chain) % (self._settled // self.fmt.page_size)]
            node = chain[-1] if chain else node
            self.prefix.hold(node)
        table = self._open(granularity, chain)
        sequence = self._sequences[seq_id] = LiveSequence(table, node, [])
        if chain:
            self._trails.join(sequence, chain)
        return table.num_tokens

    def cached_tokens(
        self,
        tokens: Sequence[int],
        *,
        granularity: Granularity = Granularity.SEQUENCE,
        salt: str = "",
        adapter: str = "",
    ) -> int:
        """What ``admit`` would return now. Nothing is opened, and no page counts as used."""
        if self.prefix is None or not len(tokens):
            return 0
        data, max_pages = self._full_pages(tokens)
        root, run = self.prefix.root(salt, adapter), self._least_run(granularity)
        found = len(self.prefix.peek(root, data, max_pages, run)) * self.fmt.page_size
        return found - found % self._settled

    def _least_run(self, granularity: Granularity) -> int:
        """Pages of the finest runs that a table may begin with: windows need a row for each layer sooner or later."""
        run = self.fmt.pages_per_run(granularity)
        return run if self.windows is None else min(run, self.fmt.num_kv_heads)

    def _open(self, granularity: Granularity, chain: list[Entry]) -> PageTable:
        """A table over the pages of a chain of entries, as far as its layers still read them."""
        num_tokens, dead = len(chain) * self.fmt.page_size, None
        if self.windows is not None:
            dead = self.windows.dead(num_tokens, self.fmt.num_layers)
            coarse = self.fmt.pages_per_run(granularity)
            if dead.any() or any(entry.run < coarse for entry in chain):
                granularity = granularity if granularity is Granularity.HEAD else Granularity.LAYER
        table = PageTable(self.fmt, granularity)
        if self.windows is not None:
            table.due = self.windows.due(num_tokens)
        if chain:
            self._adopt(table, chain, dead if dead is not None and dead.any() else None)
        return table

    def _full_pages(self, tokens: Sequence[int]) -> tuple[bytes, int]:
        """The tokens' full pages as the prefix cache compares them; at least one token is left over."""
        max_pages = (len(tokens) - 1) // self.fmt.page_size
        return token_bytes(tokens[: max_pages * self.fmt.page_size]), max_pages

    def _adopt(self, table: PageTable, chain: list[Entry], dead: Int32s | None) -> None:
        if len({entry.run for entry in chain}) == 1:
            runs = expand_runs(np.concatenate([entry.runs for entry in chain]), chain[0].run, table.run)
        else:
            runs = np.concatenate([expand_runs(entry.runs, entry.run, table.run) for entry in chain])
        columns = runs.reshape(len(chain), table.num_rows)
        if dead is None:
            self.pool.ref_runs(runs, table.run)
        else:
            dead = np.repeat(dead, table.num_rows // len(dead))
            read = np.arange(len(chain))[:, None] >= dead
            self.pool.ref_runs(columns[read], table.run)
            columns = np.where(read, columns, np.int32(0))
        table.adopt(columns, dead)

    def reserve(self, seq_id: int, num_tokens: int) -> bool:
        """Pages for the next ``num_tokens`` slots of every row; see ``Reservations.reserve``."""
        return self._reservations.reserve(self._sequences[seq_id].table, num_tokens)

    def commit(self, seq_id: int, tokens: Sequence[int]) -> None:
        """The KV of these tokens (reserved before) is written. Pages that they fill become prefix entries."""
        sequence = self._sequences[seq_id]
        table = sequence.table
        assert table.tail_owned, f"sequence {seq_id} committed to a shared page"
        assert table.room >= len(tokens), f"sequence {seq_id} committed more than it reserved"
        table.advance(len(tokens))
        if sequence.node is not None:
            self._offer(sequence, tokens)
        if table.num_tokens >= table.due:
            self._drop(sequence)

    def _offer(self, sequence: LiveSequence, tokens: Sequence[int]) -> None:
        """These tokens were committed, the newest of the table."""
        sequence.tail.extend(tokens)
        table, page_size = sequence.table, self.fmt.page_size
        late = table.num_tokens % self._settled if self._settled > page_size else 0  # tokens of pages not complete yet
        while sequence.node is not None and len(sequence.tail) - late >= page_size:
            page = token_bytes(sequence.tail[:page_size])
            column = (table.num_tokens - len(sequence.tail)) // page_size
            del sequence.tail[:page_size]
            self._trails.offer(sequence, page, column)

    def _drop(self, sequence: LiveSequence) -> None:
        """Pages that no window reaches any more go. In the prefix cache they stay, where they are in it."""
        table, windows = sequence.table, self.windows
        assert windows is not None
        if table.num_rows < self.fmt.num_layers:
            table.refine(Granularity.LAYER)
        self.pool.unref_runs(table.drop(windows.dead(table.num_tokens, table.num_rows)), table.run)
        table.due = windows.due(table.num_tokens)
        self._trails.pass_by(sequence, windows.reach(table.num_tokens))

    def fork(self, parent_id: int, child_id: int, open_from: int | None = None) -> None:
        """A second sequence over the committed pages of the first. Who writes into a shared page copies it first:
        the page that the next slot goes to, with ``open_from`` all pages from this slot on, which both write later.
        """
        assert child_id not in self._sequences, f"sequence {child_id} is admitted already"
        parent = self._sequences[parent_id]
        table = parent.table.copy()
        self.pool.ref_runs(table.runs(), table.run)
        parent.table.tail_owned = parent.alone = False
        parent.table.open_from = table.open_from = open_from
        if parent.node is not None and self.prefix is not None:
            self.prefix.hold(parent.node)
        self._sequences[child_id] = LiveSequence(
            table, parent.node, parent.tail.copy(), unpassed=parent.unpassed.copy(), num_passed=parent.num_passed
        )

    def release(self, seq_id: int) -> None:
        """Drops the sequence and all its references."""
        sequence = self._sequences.pop(seq_id)
        self.pool.unref_runs(sequence.table.runs()[::-1], sequence.table.run)
        self._trails.leave(sequence)

    def stop_offering(self, seq_id: int) -> None:
        """What is committed from here on is not exact, and never offered to the prefix cache."""
        self._trails.leave(self._sequences[seq_id])

    def stop_offering_all(self) -> None:
        """As ``stop_offering``, of every sequence."""
        for sequence in self._sequences.values():
            self._trails.leave(sequence)

    def truncate(self, seq_id: int, num_slots: int) -> None:
        """Rollback to the first ``num_slots`` tokens (speculation, beams); reserved pages beyond go back as well.

        After an eviction every row loses as many of its last slots as tokens are taken back; it cannot go back beyond
        the eviction itself, nor to where a window reaches what was given up.
        """
        sequence = self._sequences[seq_id]
        table = sequence.table
        num_back = table.num_tokens - num_slots
        assert table.kept_at <= num_slots <= table.num_tokens, (
            f"sequence {seq_id}: rollback to {num_slots} of {table.num_tokens} tokens, evicted at {table.kept_at}"
        )
        if self.windows is not None:
            if table.dead is not None:
                lost = (self.windows.dead(num_slots, table.num_rows) < table.dead).any()
                assert not lost, f"sequence {seq_id}: rollback to {num_slots} tokens, whose windows reach what is gone"
            table.due = self.windows.due(num_slots)
        self.pool.unref_runs(table.cut(table.lens - np.int32(num_back)), table.run)
        table.num_tokens = num_slots
        if sequence.node is not None and num_back:
            self._trails.rewind(sequence, num_back)

    # Eviction of slots: see ``Evictions`` ---------------------------------------------------------------------------

    def keep(self, seq_id: int, layer: int | None, head: int | None, slots: Sequence[int]) -> SlotMoves | None:
        """Only these slots (ascending) stay. ``head=None``: in the whole layer; ``layer=None`` too: in all layers."""
        return self.keep_many(seq_id, {(layer, head): slots})

    def keep_many(self, seq_id: int, kept: Kept, *, rewrite: bool = False) -> SlotMoves | None:
        """Slots that stay, ascending, per (layer, head); see ``Evictions.keep_many``."""
        return self._evictions.keep_many(self._sequences[seq_id], kept, rewrite)

    def keep_ends(self, seq_id: int, sinks: int, first: int) -> SlotMoves | None:
        """The first ``sinks`` slots of all heads stay and those from ``first`` on."""
        return self._evictions.keep_ends(self._sequences[seq_id], sinks, first)

    def keep_mask(self, seq_id: int, mask: npt.NDArray[np.bool_], *, rewrite: bool = False) -> SlotMoves | Gaps | None:
        """Slots that stay as bool ``[rows, N]``; see ``Evictions.keep_mask``."""
        return self._evictions.keep_mask(self._sequences[seq_id], mask, rewrite)

    def own_rows(self, seq_id: int) -> Int32s | None:
        """Pages of each row where all are the sequence's alone; see ``Evictions.own_rows``."""
        return self._evictions.own_rows(self._sequences[seq_id])

    def room_for_copies(self, seq_ids: list[int], run: int, needed: Callable[[], int]) -> Int32s | None:
        """Runs for what evictions of these sequences copy; see ``Evictions.room_for_copies``."""
        return self._evictions.room_for_copies([self._sequences[seq_id] for seq_id in seq_ids], run, needed)

    def was_cut(self, seq_id: int, dropped: int, num_cut: int, room: int, tail_owned: bool) -> None:
        """Its table was cut in place; see ``Evictions.was_cut``."""
        self._evictions.was_cut(self._sequences[seq_id], dropped, num_cut, room, tail_owned)

    def shorten(self, seq_id: int, lens: Int32s) -> int:
        """Slots behind these ``[rows]`` are gone, after ``own_rows``; how many those were."""
        return self._evictions.shorten(self._sequences[seq_id], lens)

    # Pages ----------------------------------------------------------------------------------------------------------

    def take_copies(self) -> list[tuple[int, int]]:
        """Page copies (source, target) that must run before the next step: all reads first, targets differ."""
        return self._reservations.take_copies()

    # Prefix cache ---------------------------------------------------------------------------------------------------

    def pin(self, tokens: Sequence[int], *, salt: str = "", adapter: str = "", ttl: float | None = None) -> int | None:
        """Keeps the cached pages at the start of these tokens, until ``unpin(handle)`` or for ``ttl`` seconds.

        Returns the handle, or None when nothing of them is cached.
        """
        if self.prefix is None:
            return None
        num_pages = len(tokens) // self.fmt.page_size
        chain = self.prefix.match(self.prefix.root(salt, adapter), token_bytes(tokens), num_pages, 1)
        return self.prefix.pin(chain[-1], ttl, chain=chain) if chain else None

    def restore(self, node: Entry, pages: Sequence[bytes]) -> list[int]:
        """Blocks for pages of tokens that follow ``node``, one entry of the prefix cache each, as far as there is room.
        Where an entry is thin it has them from now on.

        Returns the blocks, in order, for the caller to fill before anybody reads them.
        """
        assert self.prefix is not None
        run, blocks = self.fmt.pages_per_block, list[int]()
        self.prefix.hold(node)  # room is made of idle entries: not of this one
        for tokens in pages:
            if not self._room.make(run, lambda: 1):
                break
            runs = self._room.take(run, 1)
            entry = self.prefix.child(node, tokens)
            if entry is None:
                entry = self.prefix.insert(node, tokens, runs, run)
            else:
                self.prefix.upgrade(entry, runs, run)
            self.pool.unref_runs(runs, run)
            if entry is None:
                break
            blocks.append(int(runs[0]) // run)
            self.prefix.hold(entry)
            self.prefix.release(node)
            node = entry
        self.prefix.release(node)
        return blocks

    @property
    def has_pins(self) -> bool:
        """Whether some prefix is kept because it was asked for."""
        return self.prefix is not None and bool(self.prefix.pinned_entries())

    def pinned_pages(self, handle: int) -> int:
        """Pages of tokens (blocks) that a pin keeps, 0 once its time is over; those of other pins may be among them."""
        return 0 if self.prefix is None else self.prefix.pinned_pages(handle)

    def unpin(self, handle: int) -> bool:
        """Ends a pin; False if its time was over already."""
        return self.prefix is not None and self.prefix.unpin(handle)

    def clear_prefix(self) -> int:
        """Drops every cached page of tokens that no sequence and no pin needs; returns how many."""
        return self.prefix.clear() if self.prefix is not None else 0

    # Size and counters ----------------------------------------------------------------------------------------------

    def shrink(self, num_blocks: int) -> list[int]:
        """Up to ``num_blocks`` blocks leave the pool, unused cached prefixes given up for them: ids for the storage to
        release.
        """
        return self._room.shrink(num_blocks)

    def table(self, seq_id: int) -> PageTable:
        """The sequence's table, to be read only; it changes with every call on the sequence."""
        return self._sequences[seq_id].table

    def seq_ids(self) -> list[int]:
        """All live sequences."""
        return list(self._sequences)

    def held_entries(self) -> list[Entry]:
        """The prefix entries (or roots) that live sequences hold, for the auditor."""
        return [sequence.node for sequence in self._sequences.values() if sequence.node is not None]

    def blocks_needed(self, num_tokens: int) -> int:
        """Blocks for that many tokens of a new sequence."""
        return self.fmt.blocks_for(num_tokens)

    def available_blocks(self) -> int:
        """Blocks, or as many single pages, that ``reserve`` could find now, at most: free ones, those that the pool may
        still grow by, and cached prefixes that nobody uses.
        """
        return self._room.available_blocks()

    def idle_blocks(self) -> int:
        """Blocks that ``shrink`` could take out of the pool now, at most."""
        return self._room.idle_blocks()

    def capacity_tokens(self) -> int:
        """Tokens of the longest sequence that fits when it is alone and nothing is pinned."""
        return (self.pool.limit_blocks if self._can_grow else self.pool.num_blocks) * self.fmt.page_size

    def held_bytes(self, seq_id: int) -> int:
        """Bytes of all pages of the sequence, shared ones included."""
        return self._sequences[seq_id].table.num_pages * self.fmt.page_bytes

    @property
    def num_dropped_slots(self) -> int:
        """Slots that policies gave up so far, of all heads."""
        return self._evictions.num_dropped

    def stats(self) -> KVStats:
        """Counters now."""
        pool, prefix = self.pool, self.prefix
        return KVStats(
            num_blocks=pool.num_blocks,
            max_blocks=pool.limit_blocks,
            num_free_blocks=pool.num_free_blocks,
            num_touched_blocks=pool.num_touched_blocks,
            num_pages=pool.num_blocks * self.fmt.pages_per_block,
            num_free_pages=pool.num_free_pages,
            num_used_pages=pool.num_used_pages,
            num_cached_entries=len(prefix) if prefix is not None else 0,
            num_idle_entries=prefix.num_idle if prefix is not None else 0,
            num_sequences=len(self._sequences),
            num_copied_pages=self._reservations.num_copies,
            num_dropped_slots=self._evictions.num_dropped,
            num_refined_tables=self._reservations.num_refined,
            page_bytes=self.fmt.page_bytes,
            block_bytes=self.fmt.block_bytes,
            prefix=PrefixStats() if prefix is None else prefix.stats,
        )
