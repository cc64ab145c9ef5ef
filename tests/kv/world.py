"""A world around the KV manager in which every slot's content is known, so that each sequence can be read back.

Storage is a dict ``(page, slot) -> content``. A content is (layer, head, text), ``text`` standing for all tokens up to
there: two sequences may share a slot only if their whole texts up to it are the same. Copies and moves are run as the
engine runs them; freed slots are poisoned. ``check`` audits the accounting and reads everything back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pagoda.core.clock import FalseClock
from pagoda.core.types import Granularity, KVFormat
from pagoda.kv.audit import audit
from pagoda.kv.compaction import Gaps, rows_of
from pagoda.kv.manager import KVManager
from pagoda.kv.pages import PagePool
from pagoda.kv.prefix import Entry, PrefixCache
from pagoda.kv.table import expand_runs
from pagoda.kv.thinning import GONE
from pagoda.kv.windows import Windows

Content = tuple[int, int, int]


def fmt_of(num_layers: int = 2, num_kv_heads: int = 2, page_size: int = 2) -> KVFormat:
    """A tiny KV format."""
    return KVFormat(num_layers, num_kv_heads, 4, 4, page_size, "float32")


@dataclass
class Twin:
    """What one sequence must read: its text, and the texts of the slots that each (layer, head) kept."""

    salt: str
    tokens: list[int]
    text: int
    kept: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    floor: int = 0  # no rollback below
    texts: list[int] = field(default_factory=list)  # after each token


class World:
    """Manager, pool, prefix cache, clock, a ledger that grants some blocks, and the contents."""

    def __init__(
        self,
        fmt: KVFormat,
        num_blocks: int,
        *,
        max_blocks: int | None = None,
        ttl: float | None = 40.0,
        use_prefix: bool = True,
        windows: Sequence[int] = (),
    ) -> None:
        self.windows = Windows(windows, fmt, span=1) if windows else None
        self.by_layer = windows or [0] * fmt.num_layers
        self.fmt, self.clock = fmt, FalseClock()
        self.pool = PagePool(fmt, num_blocks, max_blocks=max_blocks)
        self.prefix = PrefixCache(self.pool, ttl=ttl, clock=self.clock.now) if use_prefix else None
        self.ledger_blocks = 0  # what the ledger would still grant
        self.manager = KVManager(fmt, self.pool, self.prefix, grow=self._grant, windows=self.windows)
        self.contents: dict[tuple[int, int], Content] = {}
        self.seqs: dict[int, Twin] = {}
        self.pins: list[int] = []
        self.num_ops = 0
        self._ids, self._texts = 0, {}
        self._roots: dict[bytes, int] = {}

    # Texts ----------------------------------------------------------------------------------------------------------

    def _text(self, before: int, token: object) -> int:
        return self._texts.setdefault((before, token), len(self._texts) + 1)

    def _start(self, salt: str) -> int:
        return self._text(0, salt)

    def _heads(self) -> list[tuple[int, int]]:
        return [(layer, head) for layer in range(self.fmt.num_layers) for head in range(self.fmt.num_kv_heads)]

    # Operations -----------------------------------------------------------------------------------------------------

    def _grant(self, num_blocks: int, last: bool) -> int:
        granted = min(num_blocks, self.ledger_blocks)
        self.ledger_blocks -= granted
        return granted

    def admit(self, tokens: list[int], granularity: Granularity, salt: str = "", use_prefix: bool = True) -> int:
        self._ids += 1
        self.num_ops += 1
        cached = self.manager.admit(self._ids, tokens, granularity=granularity, salt=salt, use_prefix=use_prefix)
        assert 0 <= cached < len(tokens)
        assert cached % self.fmt.page_size == 0
        twin = self.seqs[self._ids] = Twin(salt, [], self._start(salt if use_prefix else f"alone {self._ids}"))
        if self.prefix is not None and use_prefix:
            self._roots[self.prefix.root(salt).tokens] = twin.text
        twin.kept = {where: [] for where in self._heads()}
        self._extend(twin, tokens[:cached])
        return self._ids

    def _extend(self, twin: Twin, tokens: list[int]) -> list[int]:
        new = []
        for token in tokens:
            twin.text = self._text(twin.text, token)
            new.append(twin.text)
        twin.tokens += tokens
        twin.texts += new
        for kept in twin.kept.values():
            kept.extend(new)
        return new

    def reserve(self, seq_id: int, num_tokens: int) -> bool:
        self.num_ops += 1
        before = self.snapshot()
        done = self.manager.reserve(seq_id, num_tokens)
        if not done:
            assert self.snapshot() == before, "a refused reservation changed something"
        return done

    def step(self, chunks: dict[int, list[int]]) -> None:
        """Reserve all (those that do not fit sit out), copy, write, commit."""
        ready = [seq_id for seq_id, tokens in chunks.items() if self.reserve(seq_id, len(tokens))]
        self.run_copies()
        for seq_id in ready:
            table, twin, num = self.manager.table(seq_id), self.seqs[seq_id], len(chunks[seq_id])
            starts = {where: table.length(*where) for where in self._heads()}
            new = self._extend(twin, chunks[seq_id])
            for (layer, head), start in starts.items():
                for i in range(num):
                    place = table.locate(layer, head, start + i)
                    assert self.pool.refs[place[0]] == 1, f"write into shared page {place[0]}"
                    self.contents[place] = (layer, head, new[i])
        for seq_id in ready:
            self.num_ops += 1
            self.manager.commit(seq_id, chunks[seq_id])

    def run_copies(self) -> None:
        copies = self.manager.take_copies()
        assert len({target for _, target in copies}) == len(copies)
        slots = range(self.fmt.page_size)
        read = {(page, slot): self.contents.get((page, slot)) for page, _ in copies for slot in slots}
        for source, target in copies:
            for slot in slots:
                self._put((target, slot), read[source, slot])

    def _put(self, place: tuple[int, int], content: Content | None) -> None:
        if content is None:
            self.contents.pop(place, None)
        else:
            self.contents[place] = content

    def fork(self, seq_id: int, open_from: int | None = None) -> int:
        self._ids += 1
        self.num_ops += 1
        self.manager.fork(seq_id, self._ids, open_from)
        old = self.seqs[seq_id]
        kept = {where: texts.copy() for where, texts in old.kept.items()}
        self.seqs[self._ids] = Twin(old.salt, old.tokens.copy(), old.text, kept, old.floor, old.texts.copy())
        return self._ids

    def truncate(self, seq_id: int, num_tokens: int) -> None:
        self.num_ops += 1
        twin = self.seqs[seq_id]
        back = len(twin.tokens) - num_tokens
        self.manager.truncate(seq_id, num_tokens)
        if back:
            del twin.tokens[-back:], twin.texts[-back:]
            for kept in twin.kept.values():
                del kept[-back:]
            twin.text = twin.texts[-1] if twin.texts else self._unstart(seq_id)

    def floor(self, seq_id: int) -> int:
        """How few tokens the sequence may be cut to: not beyond an eviction, nor where windows reach what is gone."""
        twin, table = self.seqs[seq_id], self.manager.table(seq_id)
        if table.dead is None or self.windows is None:
            return twin.floor
        every = range(twin.floor, len(twin.tokens) + 1)
        return next(n for n in every if (self.windows.dead(n, table.num_rows) >= table.dead).all())

    def _unstart(self, seq_id: int) -> int:
        node = next(s.node for i, s in self.manager._sequences.items() if i == seq_id)
        return self._roots[node.tokens] if node is not None else self._text(0, f"alone {seq_id}")

    def keep(self, seq_id: int, kept: dict[tuple[int | None, int | None], list[int]]) -> bool:
        """Eviction as the engine does it: copies that are pending run first."""
        self.num_ops += 1
        twin = self.seqs[seq_id]
        self.run_copies()
        before = self.snapshot()
        table = self.manager.table(seq_id)
        if table.run == 1 and self.num_ops % 2:  # all rows at once
            mask = np.arange(table.lens.max()) < table.lens[:, None]
            for (layer, head), slots in kept.items():
                for row in rows_of(table, layer, head):
                    mask[row, np.setdiff1d(np.arange(table.lens[row]), slots)] = False
            rows = self.manager.own_rows(seq_id) if self.num_ops % 4 == 1 else None
            if rows is None:
                moves = self.manager.keep_mask(seq_id, mask)
            else:  # in place, as the kernels do it
                moves = Gaps(rows.copy(), mask, self.fmt.page_size).moves()
                self.manager.shorten(seq_id, mask.sum(1, dtype=np.int32))
        elif list(kept) == [(None, None)] and (ends := _ends(kept[None, None], int(table.lens[0]))) is not None:
            moves = self.manager.keep_ends(seq_id, *ends)
        else:
            moves = self.manager.keep_many(seq_id, kept)
        if moves is None:
            assert self.snapshot() == before, "a refused eviction changed something"
            return False
        targets = [(page, slot) for _, _, page, slot in moves]
        assert len(set(targets)) == len(targets)
        read = [self.contents.get((page, slot)) for page, slot, _, _ in moves]
        for (source, _, page, slot), content in zip(moves, read, strict=True):
            assert self.pool.refs[page] == 1, f"move from {source} into shared page {page}"
            self._put((page, slot), content)
        changed = False
        for (layer, head), slots in kept.items():
            for where in self._heads():
                if layer in (None, where[0]) and head in (None, where[1]):
                    changed |= len(slots) < len(twin.kept[where])
                    twin.kept[where] = [twin.kept[where][slot] for slot in slots]
        if changed:  # from here on the text's KV is nobody else's
            twin.floor = len(twin.tokens)
            twin.text = self._text(twin.text, f"evicted {self.num_ops}")
        return True

    def release(self, seq_id: int) -> None:
        self.num_ops += 1
        self.manager.release(seq_id)
        del self.seqs[seq_id]

    def pin(self, tokens: list[int], salt: str, ttl: float | None) -> None:
        self.num_ops += 1
        handle = self.manager.pin(tokens, salt=salt, ttl=ttl)
        if handle is not None:
            self.pins.append(handle)

    def unpin(self, index: int) -> None:
        self.num_ops += 1
        self.manager.unpin(self.pins.pop(index))

    def shrink(self, num_blocks: int) -> None:
        self.num_ops += 1
        before = self.pool.num_blocks
        gone = self.manager.shrink(num_blocks)
        assert len(gone) <= num_blocks
        assert self.pool.num_blocks == before - len(gone)
        self.ledger_blocks += len(gone)

    # Checking -------------------------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[object, ...]:
        """All that a refused operation must leave as it was (the pool may have grown)."""
        if self.prefix is not None:
            self.prefix.expire()  # time's doing, not the operation's
        tables = {
            seq_id: (
                table.bases[:, : table.counts.max()].tobytes(), table.counts.tobytes(), table.lens.tobytes(),
                table.granularity, table.num_tokens, table.room, table.pristine, table.kept_at,
            )
            for seq_id, table in ((seq_id, self.manager.table(seq_id)) for seq_id in self.manager.seq_ids())
        }  # fmt: skip
        entries = {
            entry.key: (entry.runs.tobytes(), entry.users, entry.num_children)
            for entry in (self.prefix.entries() if self.prefix is not None else ())
        }
        return tables, entries, self.pool.refs.tobytes(), dict(self.manager._reservations._copies)

    def check(self) -> None:
        """The auditor, then every slot of every sequence and entry."""
        audit(self.manager)
        pending = self.manager._reservations._copies  # not run yet: the content is still at the source
        size, contents = self.fmt.page_size, self.contents
        for seq_id, twin in self.seqs.items():
            table = self.manager.table(seq_id)
            assert table.num_tokens == len(twin.tokens)
            bases = table.bases.tolist()
            for (layer, head), texts in twin.kept.items():
                assert table.length(layer, head) == len(texts)
                row, offset = bases[table.row(layer, head)], table.offset(layer, head)
                first = 0 if table.dead is None else int(table.dead[table.row(layer, head)]) * size
                window = self.by_layer[layer]
                assert first <= (max(0, len(texts) - window + 1) if window else 0), "a window reaches what is gone"
                if window and table.num_rows > 1:
                    assert first + size > len(texts) - window + 1, "a page that no window reaches is still there"
                for slot, text in list(enumerate(texts))[first:]:
                    page = row[slot // size] + offset
                    found = contents.get((pending.get(page, page), slot % size))
                    assert found == (layer, head, text), f"sequence {seq_id} reads {found} at {layer}, {head}, {slot}"
        self._check_entries()
        self._poison()

    def _check_entries(self) -> None:
        ends: dict[object, int] = {}  # entry -> the text at its end
        for entry in self.prefix.entries() if self.prefix is not None else ():
            text = self._end_of(entry.parent, ends)
            gone = np.repeat(entry.runs == GONE, entry.run)
            pages = np.where(gone, GONE, expand_runs(entry.runs, entry.run, 1)).tolist()
            assert [page == GONE for page in pages] == [
                entry.thin and self.by_layer[layer] > 0 for layer, _ in self._heads()
            ]
            for slot, token in enumerate(np.frombuffer(entry.tokens, np.int32).tolist()):
                text = self._text(text, token)
                for (layer, head), page in zip(self._heads(), pages, strict=True):
                    if page == GONE:
                        continue
                    assert self.contents.get((page, slot)) == (layer, head, text), f"entry {entry.key.hex()} is wrong"

    def _end_of(self, entry: Entry, ends: dict[object, int]) -> int:
        if entry not in ends:
            if entry.parent is None:
                return self._roots[entry.tokens]
            text = self._end_of(entry.parent, ends)
            for token in np.frombuffer(entry.tokens, np.int32).tolist():
                text = self._text(text, token)
            ends[entry] = text
        return ends[entry]

    def _poison(self) -> None:
        """What is free holds nothing that anybody may read (but for sources of copies that are still to run)."""
        sources = set(self.manager._reservations._copies.values())
        self.contents = {
            (page, slot): content
            for (page, slot), content in self.contents.items()
            if self.pool.refs[page] > 0 or page in sources
        }


def _ends(slots: list[int], num_slots: int) -> tuple[int, int] | None:
    """How many of the first slots stay, and where the last ones begin that do; None where others stay too."""
    sinks = next((i for i, slot in enumerate(slots) if slot != i), len(slots))
    first = num_slots - (len(slots) - sinks)
    return (sinks, first) if slots[sinks:] == list(range(first, num_slots)) and first < num_slots else None
