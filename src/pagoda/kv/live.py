"""A live sequence: its table, and how far its text runs through the prefix cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pages import PagePool
from .prefix import Entry, PrefixCache
from .table import PageTable, expand_runs


@dataclass(slots=True)
class LiveSequence:
    """``node``: deepest prefix entry that this text runs through (held); None: its pages are not offered any more.
    ``tail``: the tokens after it. ``alone``: known to share no page, which a fork ends.
    """

    table: PageTable
    node: Entry | None
    tail: list[int]
    alone: bool = False


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
        elif entry.run < table.run:
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
        if node is not held:
            prefix.release(held, until=node)
        sequence.node, sequence.tail = node, tail[: len(tail) - num_back]

    def leave(self, sequence: LiveSequence) -> None:
        """The text's pages are not offered to the prefix cache any more, nor kept in it for this sequence."""
        if sequence.node is not None and self._prefix is not None:
            self._prefix.release(sequence.node)
        sequence.node, sequence.tail = None, []
