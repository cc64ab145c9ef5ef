"""The engine's one door to KV: which pages a sequence has, who else reads them, and who must copy first.

The life of a sequence::

    admit    opens a table over the pages that the prefix cache already has
    reserve  before a step: pages for the step's tokens; a shared page that would be written is replaced by a copy
    commit   after the step: the tokens are written; full pages are offered to the prefix cache
    keep     a policy drops slots: the rest moves up, tail pages are free again
    release  all references go; what the prefix cache has stays there

No torch: copies and moves are handed to the storage as page ids. Copies from ``take_copies`` are run before the step (and
before any moves).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core.errors import ConfigError, RequestError
from ..core.types import Granularity, KVFormat
from .pages import PagePool
from .prefix import Entry, PrefixCache, PrefixStats, token_bytes
from .reclaim import Reclaim
from .table import Int32s, PageTable, SlotMoves, expand_runs


@dataclass(slots=True)
class _Sequence:
    """``node``: deepest prefix entry that this text runs through (held); None: its pages are not offered any more.
    ``tail``: the tokens after it.
    """

    table: PageTable
    node: Entry | None
    tail: list[int]


@dataclass(frozen=True, slots=True)
class KVStats:
    """One look at pool, sequences and prefix cache. Pages, blocks and bytes of one KV format."""

    num_blocks: int
    max_blocks: int
    num_free_blocks: int
    num_touched_blocks: int
    num_pages: int
    num_free_pages: int
    num_used_pages: int
    num_cached_entries: int
    num_sequences: int
    num_copies: int
    num_evictions_of_slots: int
    page_bytes: int
    block_bytes: int
    prefix: PrefixStats = field(default_factory=PrefixStats)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that the pool may use now."""
        return self.num_blocks * self.block_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of pages with an owner."""
        return self.num_used_pages * self.page_bytes

    @property
    def touched_bytes(self) -> int:
        """Bytes of blocks that may be resident."""
        return self.num_touched_blocks * self.block_bytes


@dataclass(slots=True)
class _RowPlan:
    """What ``keep`` does to one row::

        columns   │ as is │ dirty │ dirty │ freed │        first_dirty == 1, num_dirty == 2
                  ^ slots before the first that moves
    """

    row: int
    slots: Int32s
    first_moved: int
    first_dirty: int
    num_dirty: int

    @classmethod
    def make(
        cls, table: PageTable, layer: int | None, head: int | None, slots: Sequence[int] | Int32s
    ) -> _RowPlan:
        row = _row_of(table, layer, head)
        kept = np.asarray(slots, np.int32).reshape(-1)
        if len(kept) and (kept[0] < 0 or kept[-1] >= table.lens[row] or (np.diff(kept) <= 0).any()):
            raise ConfigError(f"slots to keep in layer {layer}, head {head}: not ascending slots of 0 … {table.lens[row] - 1}")
        moved = np.flatnonzero(kept != np.arange(len(kept)))  # from the first gap on, all move
        first_moved = int(moved[0]) if len(moved) else len(kept)
        page_size = table.fmt.page_size
        first_dirty = first_moved // page_size
        num_dirty = -(-len(kept) // page_size) - first_dirty if len(moved) else 0
        return cls(row, kept, first_moved, first_dirty, num_dirty)

    def dirty_runs(self, table: PageTable) -> Int32s:
        return table.bases[self.row, self.first_dirty : self.first_dirty + self.num_dirty]

    def moves(self, table: PageTable, target: Int32s, first_copied: bool) -> SlotMoves:
        """Moves into the runs ``target`` [num_dirty]. With a fresh first one, its slots that stay in place come along."""
        page_size = table.fmt.page_size
        start = self.first_dirty * page_size if first_copied else self.first_moved
        if not self.num_dirty:
            return SlotMoves.join([])
        sources = self.slots[start:]
        targets = np.arange(start, len(self.slots), dtype=np.int32)
        heads = np.arange(table.run, dtype=np.int32)[:, None]
        src_pages = table.bases[self.row, sources // page_size] + heads
        dst_pages = target[targets // page_size - self.first_dirty] + heads
        return SlotMoves(
            src_pages.ravel(), np.tile(sources % page_size, table.run),
            dst_pages.ravel(), np.tile(targets % page_size, table.run),
        )  # fmt: skip


def _row_of(table: PageTable, layer: int | None, head: int | None) -> int:
    """The row that covers exactly the named heads. Raises ConfigError where a row covers more, or more rows are meant."""
    accepted = {
        Granularity.SEQUENCE: layer is None and head is None,
        Granularity.LAYER: layer is not None and head is None,
        Granularity.HEAD: layer is not None and head is not None,
    }
    if not accepted[table.granularity]:
        raise ConfigError(
            f"eviction in layer {layer}, head {head} of a table of granularity {table.granularity.value}; accepted: layer and "
            f"head with granularity head, a layer (head None) with layer, neither with sequence: the policy must declare it"
        )
    if not (0 <= (layer or 0) < table.fmt.num_layers and 0 <= (head or 0) < table.fmt.num_kv_heads):
        raise ConfigError(
            f"no layer {layer}, head {head}; accepted: layers below {table.fmt.num_layers}, heads below {table.fmt.num_kv_heads}"
        )
    return table.row(layer or 0, head or 0)


class KVManager:
    """Page tables of all live sequences of one KV format.

    grow    is asked for a number of blocks when pages run out, and returns how many the ledger granted (0 … asked); the
            manager adds them to the pool. It is asked before cached prefixes are given up. What was granted stays with the
            pool, even when the reservation fails in the end; ``shrink`` gives it back.
    """

    def __init__(
        self,
        fmt: KVFormat,
        pool: PagePool,
        prefix: PrefixCache | None,
        *,
        grow: Callable[[int], int] | None = None,
    ) -> None:
        self.fmt, self.pool, self.prefix = fmt, pool, prefix
        self._grow = grow
        self._sequences: dict[int, _Sequence] = {}
        self._copies: dict[int, int] = {}  # page to be written -> page to be read, before the next step
        self._num_copies = self._num_dropped = 0

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
        """Opens a table; returns how many of the tokens are cached already (fewer than all: one is always computed).

        With ``use_prefix=False`` the sequence neither reads the prefix cache nor adds to it. Takes no free page.
        """
        assert seq_id not in self._sequences, f"sequence {seq_id} is admitted already"
        if not len(tokens):
            raise RequestError("a sequence without tokens; accepted: at least one token")
        table, node = PageTable(self.fmt, granularity), None
        if self.prefix is not None and use_prefix:
            node = self.prefix.root(salt, adapter)
            max_pages = (len(tokens) - 1) // self.fmt.page_size
            chain = self.prefix.match(node, token_bytes(tokens[: max_pages * self.fmt.page_size]), max_pages, table.run)
            if chain:
                node = chain[-1]
                self._adopt(table, chain)
            self.prefix.hold(node)
        self._sequences[seq_id] = _Sequence(table, node, [])
        return table.num_tokens

    def _adopt(self, table: PageTable, chain: list[Entry]) -> None:
        if chain[0].run == chain[-1].run == min(entry.run for entry in chain):
            runs = expand_runs(np.concatenate([entry.runs for entry in chain]), chain[0].run, table.run)
        else:
            runs = np.concatenate([expand_runs(entry.runs, entry.run, table.run) for entry in chain])
        self.pool.ref_runs(runs, table.run)
        table.adopt(runs.reshape(len(chain), table.num_rows))

    def reserve(self, seq_id: int, num_tokens: int) -> bool:
        """Pages for the next ``num_tokens`` slots of every row; shared pages among them are replaced by copies.

        Free pages first, then growth of the pool, then cached prefixes. False if that is not enough: then no table, page
        or entry has changed.
        """
        table = self._sequences[seq_id].table
        if table.tail_owned and table.room >= num_tokens:
            return True
        return self._reserve(table, num_tokens)

    def _reserve(self, table: PageTable, num_tokens: int) -> bool:
        missing = table.missing_runs(num_tokens)
        num_missing = int(missing.sum())
        rows, columns = table.open_cells() if not table.tail_owned else (np.zeros(0, np.intp), np.zeros(0, np.int32))
        open_runs = table.bases[rows, columns]
        if not self._make_room(table.run, lambda: num_missing + int(self.pool.shared(open_runs, table.run).sum())):
            return False
        shared = self.pool.shared(open_runs, table.run)
        runs = self._alloc(table.run, num_missing + int(shared.sum()))
        if num_missing:
            table.append(missing, runs[:num_missing])
        if shared.any():
            table.bases[rows[shared], columns[shared]] = runs[num_missing:]
            self._copy(open_runs[shared], runs[num_missing:], table.run)
            self.pool.unref_runs(open_runs[shared], table.run)
        table.tail_owned = True
        return True

    def commit(self, seq_id: int, tokens: Sequence[int]) -> None:
        """The KV of these tokens (reserved before) is written. Pages that they fill become prefix entries."""
        sequence = self._sequences[seq_id]
        table = sequence.table
        assert table.tail_owned and table.room >= len(tokens), f"sequence {seq_id} committed more than it reserved"
        table.advance(len(tokens))
        if sequence.node is None:
            return
        sequence.tail.extend(tokens)
        page_size = self.fmt.page_size
        while sequence.node is not None and len(sequence.tail) >= page_size:
            page = token_bytes(sequence.tail[:page_size])
            column = (table.num_tokens - len(sequence.tail)) // page_size
            del sequence.tail[:page_size]
            self._offer(sequence, page, column)

    def _offer(self, sequence: _Sequence, page: bytes, column: int) -> None:
        """A full page of tokens: becomes an entry, or the table changes over to the one that is there already."""
        prefix, table, node = self.prefix, sequence.table, sequence.node
        assert prefix is not None and node is not None
        runs = table.bases[:, column].copy()
        entry = prefix.child(node, page)
        if entry is None:
            entry = prefix.insert(node, page, runs, table.run)
        elif entry.run < table.run:
            prefix.upgrade(entry, runs, table.run)
        else:
            same = expand_runs(entry.runs, entry.run, table.run)
            self.pool.ref_runs(same, table.run)
            self.pool.unref_runs(runs, table.run)
            table.bases[:, column] = same
        if entry is None:
            self._leave(sequence)
            return
        prefix.advance(entry)
        sequence.node = entry

    def fork(self, parent_id: int, child_id: int) -> None:
        """A second sequence over the committed pages of the first. Whoever writes into a shared page first copies it."""
        assert child_id not in self._sequences, f"sequence {child_id} is admitted already"
        parent = self._sequences[parent_id]
        table = parent.table.copy()
        self.pool.ref_runs(table.runs(), table.run)
        parent.table.tail_owned = False
        if parent.node is not None and self.prefix is not None:
            self.prefix.hold(parent.node)
        self._sequences[child_id] = _Sequence(table, parent.node, parent.tail.copy())

    def release(self, seq_id: int) -> None:
        """Drops the sequence and all its references."""
        sequence = self._sequences.pop(seq_id)
        self.pool.unref_runs(sequence.table.runs()[::-1], sequence.table.run)
        self._leave(sequence)

    def _leave(self, sequence: _Sequence) -> None:
        """The text's pages are not offered to the prefix cache any more, nor kept in it for this sequence."""
        if sequence.node is not None and self.prefix is not None:
            self.prefix.release(sequence.node)
        sequence.node, sequence.tail = None, []

    def truncate(self, seq_id: int, num_slots: int) -> None:
        """Rollback to the first ``num_slots`` tokens (speculation, beams); reserved pages beyond go back as well.

        After an eviction every row loses as many of its last slots as tokens are taken back; it cannot go back beyond the
        eviction itself.
        """
        sequence = self._sequences[seq_id]
        table = sequence.table
        num_back = table.num_tokens - num_slots
        assert num_back >= 0 and num_slots >= table.kept_at, (
            f"sequence {seq_id}: rollback to {num_slots} of {table.num_tokens} tokens, evicted at {table.kept_at}"
        )
        self.pool.unref_runs(table.cut(table.lens - np.int32(num_back)), table.run)
        table.num_tokens = num_slots
        if sequence.node is not None and num_back:
            self._rewind(sequence, num_back)

    def _rewind(self, sequence: _Sequence, num_back: int) -> None:
        """The last tokens leave the tail; what remains of a page that was full is tail again."""
        held, tail, prefix = sequence.node, sequence.tail, self.prefix
        assert held is not None and prefix is not None
        node = held
        while num_back > len(tail):
            num_back -= len(tail)
            tail = np.frombuffer(node.tokens, np.int32).tolist()
            assert node.parent is not None
            node = node.parent
        if node is not held:
            prefix.release(held, until=node)
        sequence.node, sequence.tail = node, tail[: len(tail) - num_back]

    # Eviction of slots ----------------------------------------------------------------------------------------------

    def keep(self, seq_id: int, layer: int | None, head: int | None, slots: Sequence[int]) -> SlotMoves | None:
        """Only these slots (ascending) of one row stay; see ``keep_many``. ``head=None``: all heads of the layer, and
        ``layer=None``: all layers, where the table's granularity has one row for them.
        """
        return self.keep_many(seq_id, {(layer, head): slots})

    def keep_many(
        self, seq_id: int, kept: Mapping[tuple[int | None, int | None], Sequence[int] | Int32s]
    ) -> SlotMoves | None:
        """Slots that stay, ascending, per (layer, head); rows not named stay as they are. They move up to slots 0 … n-1.

        Shared pages that would be written are replaced, for these rows only; pages past the end are free at once, though
        the returned moves may still read them: run the moves (after ``take_copies``) before the next step. Pages that
        were reserved but not written go back too. The sequence's later pages are not offered to the prefix cache.

        Returns None, and nothing has changed, when there is no room for the replacements. Raises ConfigError when a row
        covers more heads than were named, or the slots are not ascending slots of the row.
        """
        sequence = self._sequences[seq_id]
        table, page_size = sequence.table, self.fmt.page_size
        plans = [_RowPlan.make(table, layer, head, slots) for (layer, head), slots in kept.items()]
        plans = [plan for plan in plans if len(plan.slots) < table.lens[plan.row]]
        if not plans:
            return SlotMoves.join([])
        dirty = np.concatenate([plan.dirty_runs(table) for plan in plans])
        if sequence.node is not None and self.prefix is not None:
            self.prefix.release(sequence.node)  # its own entries may have to go: then the pages are its own
        if not self._make_room(table.run, lambda: int(self.pool.shared(dirty, table.run).sum())):
            if sequence.node is not None and self.prefix is not None:
                self.prefix.hold(sequence.node)
            return None
        sequence.node, sequence.tail = None, []
        shared = self.pool.shared(dirty, table.run)
        fresh = self._alloc(table.run, int(shared.sum()))
        parts, first = [], 0
        lens = table.lens.copy()
        target = dirty.copy()
        target[shared] = fresh
        for plan in plans:
            last = first + plan.num_dirty
            parts.append(plan.moves(table, target[first:last], bool(shared[first:last][:1].any())))
            table.bases[plan.row, plan.first_dirty : plan.first_dirty + plan.num_dirty] = target[first:last]
            lens[plan.row] = len(plan.slots)
            first = last
        self._num_dropped += int((table.lens - lens).sum()) * table.run
        freed = table.cut(lens)
        self.pool.unref_runs(np.concatenate([dirty[shared], freed]), table.run)
        table.pristine, table.kept_at = False, table.num_tokens
        return SlotMoves.join(parts)

    # Pages ----------------------------------------------------------------------------------------------------------

    def _alloc(self, run: int, num: int) -> Int32s:
        runs = self.pool.alloc_runs(run, num)
        assert runs is not None, "room was made before"
        return runs

    def _make_room(self, run: int, needed: Callable[[], int]) -> bool:
        """Sees to it that ``needed()`` runs are free (asked again as entries go, since that ends sharing)."""
        missing = needed() - self.pool.num_free_runs(run)
        if missing > 0 and self._grow is not None:
            blocks = min(-(-missing * run // self.fmt.pages_per_block), self.pool.max_blocks - self.pool.num_blocks)
            if blocks > 0:
                self.pool.grow(self._grow(blocks))
            missing = needed() - self.pool.num_free_runs(run)
        if missing <= 0:
            return True
        if self.prefix is None:
            return False
        self.prefix.expire()
        trial = Reclaim(self.pool, self.prefix, run)
        while needed() > trial.num_free:
            if not trial.step():
                trial.rollback()
                return False
        trial.commit()
        return True

    def _copy(self, old: Int32s, new: Int32s, run: int) -> None:
        """Notes page copies. A page that is itself still to be copied is read where its content is now."""
        sources, targets = expand_runs(old, run, 1).tolist(), expand_runs(new, run, 1).tolist()
        self._num_copies += len(targets)
        for source, target in zip([self._copies.get(page, page) for page in sources], targets, strict=True):
            self._copies[target] = source

    def take_copies(self) -> list[tuple[int, int]]:
        """Page copies (source, target) that must run before the next step: all reads first, targets differ."""
        copies = [(source, target) for target, source in self._copies.items() if self.pool.refs[target]]
        self._copies.clear()
        return copies

    # Prefix cache ---------------------------------------------------------------------------------------------------

    def pin(self, tokens: Sequence[int], *, salt: str = "", adapter: str = "", ttl: float | None = None) -> int | None:
        """Keeps the cached pages at the start of these tokens, until ``unpin(handle)`` or for ``ttl`` seconds.

        Returns the handle, or None when nothing of them is cached.
        """
        if self.prefix is None:
            return None
        num_pages = len(tokens) // self.fmt.page_size
        chain = self.prefix.match(self.prefix.root(salt, adapter), token_bytes(tokens), num_pages, 1)
        return self.prefix.pin(chain[-1], ttl) if chain else None

    def unpin(self, handle: int) -> bool:
        """Ends a pin; False if its time was over already."""
        return self.prefix is not None and self.prefix.unpin(handle)

    def clear_prefix(self) -> int:
        """Drops every cached page of tokens that no sequence and no pin needs; returns how many."""
        return self.prefix.clear() if self.prefix is not None else 0

    # Size and counters ----------------------------------------------------------------------------------------------

    def shrink(self, num_blocks: int) -> list[int]:
        """Up to ``num_blocks`` blocks leave the pool, cached prefixes given up for them: ids for the storage to release."""
        run = self.fmt.pages_per_block
        missing = num_blocks - self.pool.num_free_runs(run)
        if missing > 0 and self.prefix is not None:
            trial = Reclaim(self.pool, self.prefix, run)
            while trial.num_free < num_blocks and trial.step():
                pass
            trial.commit()
        return self.pool.shrink(num_blocks)

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

    def available_blocks(self, granularity: Granularity = Granularity.SEQUENCE) -> int:
        """Blocks (or as many pages in finer runs) that ``reserve`` could find now: free ones, those that the pool may still
        grow by, and cached prefixes that nobody uses. At most: the ledger may refuse growth, and a cached page that a
        sequence evicted from may be shared still.
        """
        run = self.fmt.pages_per_run(granularity)
        free = self.pool.num_free_runs(run) * run // self.fmt.pages_per_block
        growth = self.pool.max_blocks - self.pool.num_blocks if self._grow is not None else 0
        return free + growth + (self.prefix.num_idle if self.prefix is not None else 0)

    def capacity_tokens(self) -> int:
        """Tokens of the longest sequence that fits when it is alone and nothing is pinned."""
        blocks = self.pool.num_blocks if self._grow is None else self.pool.max_blocks
        return blocks * self.fmt.page_size

    def held_bytes(self, seq_id: int) -> int:
        """Bytes of all pages of the sequence, shared ones included."""
        return self._sequences[seq_id].table.num_pages * self.fmt.page_bytes

    def stats(self) -> KVStats:
        """Counters now."""
        pool, prefix = self.pool, self.prefix
        return KVStats(
            num_blocks=pool.num_blocks,
            max_blocks=pool.max_blocks,
            num_free_blocks=pool.num_free_blocks,
            num_touched_blocks=pool.num_touched_blocks,
            num_pages=pool.num_blocks * self.fmt.pages_per_block,
            num_free_pages=pool.num_free_pages,
            num_used_pages=pool.num_used_pages,
            num_cached_entries=len(prefix) if prefix is not None else 0,
            num_sequences=len(self._sequences),
            num_copies=self._num_copies,
            num_evictions_of_slots=self._num_dropped,
            page_bytes=self.fmt.page_bytes,
            block_bytes=self.fmt.block_bytes,
            prefix=PrefixStats() if prefix is None else prefix.stats,
        )
