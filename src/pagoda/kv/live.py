"""A live sequence: its table, and how far its text runs through the prefix cache."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from .pages import PagePool
from .prefix import Entry, PrefixCache
from .table import PageTable, expand_runs


@dataclass(slots=True)
class LiveSequence:
    """``node``: deepest prefix entry that this text runs through (held); None: its pages are not offered any more.
    ``tail``: the tokens after it. ``alone``: known to share no page, which a fork ends. ``unpassed``: entries up to the
    node that it reads in every layer, ``num_passed`` entries come before them (`thinning`).
    """

    table: PageTable
    node: Entry | None
    tail: list[int]
    alone: bool = False
    unpassed: deque[Entry] = field(default_factory=deque)
    num_passed: int = 0


class Trails:
    """How sequences go forth and back through the prefix cache (None: there is none, and no sequence has a node)."""

    def __init__(self, pool: PagePool, prefix: PrefixCache | None) -> None:
        self._pool, self._prefix = pool, prefix

    def offer(self, sequence: LiveSequence, page: bytes, column: int) -> None:
        """A full page of tokens: becomes an entry, or the table changes over to the one that is there already."""
        prefix, table, node = self._prefix, sequence.table, sequence.node
        assert prefix is not None
        assert node is not None
        runs = table.bases[:, column].copy()
        entry = prefix.child(node, page)
        if entry is None:
            entry = prefix.insert(node, page, runs, table.run)
        elif entry.run < table.run or entry.thin:
            prefix.upgrade(entry, runs, table.run)
        else:
            same = expand_runs(entry.runs, entry.run, table.run)
            self._pool.ref_runs(same, table.run)
            self._pool.unref_runs(runs, table.run)
            table.rebase(slice(None), column, same)
        if entry is None:
            self.leave(sequence)
            return
        prefix.advance(entry)
        sequence.node = entry
        sequence.unpassed.append(entry)

    def join(self, sequence: LiveSequence, chain: list[Entry]) -> None:
        """A sequence begins with a chain of entries; its table has their pages."""
        prefix = self._prefix
        assert prefix is not None
        whole = chain if prefix.thinning is None else prefix.thinning.reached(chain)
        sequence.num_passed = len(chain) - len(whole)
        sequence.unpassed.extend(whole)
        prefix.passed(chain[: sequence.num_passed])

    def pass_by(self, sequence: LiveSequence, reach: int) -> None:
        """Layers with windows read it from page ``reach`` on."""
        while sequence.unpassed and sequence.num_passed < reach:
            assert self._prefix is not None
            self._prefix.passed((sequence.unpassed.popleft(),))
            sequence.num_passed += 1

    def rewind(self, sequence: LiveSequence, num_back: int) -> None:
        """The last tokens leave the tail; what remains of a page that was full is tail again."""
        held, tail, prefix = sequence.node, sequence.tail, self._prefix
        assert held is not None
        assert prefix is not None
        node = held
        while num_back > len(tail):
            num_back -= len(tail)
            tail = np.frombuffer(node.tokens, np.int32).tolist()
            assert node.parent is not None
            node = node.parent
            sequence.unpassed.pop()
        if node is not held:
            prefix.release(held, until=node)
        sequence.node, sequence.tail = node, tail[: len(tail) - num_back]

    def leave(self, sequence: LiveSequence) -> None:
        """The text's pages are not offered to the prefix cache any more, nor kept in it for this sequence."""
        if sequence.node is not None and self._prefix is not None:
            self._prefix.release(sequence.node)
        self.left(sequence)

    def left(self, sequence: LiveSequence) -> None:
        """The sequence has released its node. Others whose text goes on after its pages may have passed them by."""
        if self._prefix is not None:
            self._prefix.passed([entry for entry in sequence.unpassed if entry.users])
        sequence.unpassed.clear()
        sequence.node, sequence.tail = None, []
