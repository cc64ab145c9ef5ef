"""The prefix cache: full pages of tokens that were computed once, found again by what they contain.

A radix tree whose edges are pages of tokens. Every tree has a root for its namespace (model fingerprint, adapter,
tenant salt, KV format); an entry's key is the xxh3-128 hash of its parent's key and its tokens, so a key names the
whole text from the start. Keys only find candidates: a hit also compares the parent and the tokens, so that a colliding
hash costs a miss, never a wrong token.

Exact under eviction: an entry leaves only when nothing hangs below it, so an entry that is there can be reached from
its root. A sequence *holds* the deepest entry that it uses; that keeps all its ancestors. Least recently used leaves
that are neither held nor pinned go first (a heap with lazy deletion: O(log n)).

Radix trees over KV: SGLang (arXiv:2312.07104); chained page hashes: vLLM (arXiv:2309.06180).
"""

from __future__ import annotations

import heapq
import itertools
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash

from .codecs.base import forms
from .pages import Int32s, PagePool
from .thinning import GONE, Thinning
from .windows import Windows

_HANDLES = itertools.count(1)
"""Of pins, in the whole process: that of a cache which is gone names nothing."""


class Entry:
    """One full page of tokens after its ancestors', and the runs that hold their KV.

    A root has no parent and no runs; its "tokens" are the name of its namespace.
    """

    __slots__ = ("key", "lru", "num_children", "parent", "run", "runs", "thin", "tick", "tokens", "used_at", "users")

    def __init__(self, parent: Entry | None, key: bytes, tokens: bytes, runs: Int32s, run: int) -> None:
        self.parent, self.key, self.tokens = parent, key, tokens
        self.runs, self.run = runs, run  # bases, one for each row of the table that computed them; pages of a run
        self.num_children = 0
        self.users = 0  # sequences and pins that end here or below: none means that it may be evicted
        self.tick = 0  # when it was last used: by count of uses, and by the clock
        self.used_at = 0.0
        self.lru = -1  # serial number of its place in the heap; -1: none
        self.thin = False  # without the pages of layers with windows (`thinning`): their runs are `GONE`

    @property
    def held_runs(self) -> Int32s:
        """Of its runs those that it has."""
        return self.runs[self.runs != GONE] if self.thin else self.runs


class Given(NamedTuple):
    """What the cache gave up: an entry that left the tree, or (with the runs that it had ``before``) became thin."""

    entry: Entry
    runs: Int32s
    run: int
    in_line: bool
    before: tuple[Int32s, int] | None = None


@dataclass(slots=True)
class PrefixStats:
    """Since the start, in pages."""

    num_lookups: int = 0
    num_hit_pages: int = 0
    num_missed_pages: int = 0
    num_inserted_pages: int = 0
    num_evicted_pages: int = 0
    num_expired_pages: int = 0
    num_thinned_pages: int = 0


def _hash(data: bytes) -> bytes:
    return xxhash.xxh3_128_digest(data)


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Tokens as the cache compares them: native int32."""
    return array("i", tokens).tobytes()


class PrefixCache:
    """Pages stay here after their sequence is gone, one reference each.

    ttl     seconds after the last use at which an idle entry is dropped; None: only when its pages are needed.
    clock   seconds that never go back; handed in, so that tests and the simulator move it.
    hasher  bytes to a digest; tests hand in a bad one to prove that hits do not trust it.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        fingerprint: str = "",
        ttl: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        hasher: Callable[[bytes], bytes] = _hash,
    ) -> None:
        self.pool, self.fingerprint, self.ttl = pool, fingerprint, ttl
        self.stats = PrefixStats()
        self._clock, self._hash = clock, hasher
        self.on_insert: Callable[[Entry], None] | None = None
        """Told of every entry that ``insert`` made."""
        self._page_bytes, self._forms = 4 * pool.fmt.page_size, forms(pool.fmt)
        self._roots: dict[bytes, Entry] = {}  # those that are held or have children
        self._entries: dict[bytes, Entry] = {}
        self._heap: list[tuple[int, int, Entry]] = []  # (tick, serial, entry); stale unless entry.lru == serial
        self._pins: dict[int, tuple[Entry, float | None, Sequence[Entry]]] = {}
        self._tick = self._serial = self._num_used = 0
        self.thinning: Thinning | None = None

    def use_windows(self, windows: Windows) -> None:
        """Sequences read these windows, and pass by entries (``passed``)."""
        self.thinning = Thinning(self.pool, windows)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_idle(self) -> int:
        """Entries that may be evicted, now or after those below them."""
        return len(self._entries) - self._num_used

    @property
    def num_spare_pages(self) -> int:
        """Pages that could be given up now, as far as no sequence shares them."""
        idle = self.num_idle * self.pool.fmt.pages_per_block
        return idle if self.thinning is None else idle + self.thinning.spare_pages

    # For the auditor ------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All entries, without the roots."""
        return list(self._entries.values())

    def pinned_entries(self) -> list[Entry]:
        """The entry of every pin."""
        return [entry for entry, *_ in self._pins.values()]

    def is_root(self, entry: Entry) -> bool:
        """Whether texts of a known namespace begin here."""
        return self._roots.get(entry.tokens) is entry

    def in_line(self, entry: Entry) -> bool:
        """Whether the entry has its place among those to be evicted."""
        return any(item[1] == entry.lru and item[2] is entry for item in self._heap)

    # Finding --------------------------------------------------------------------------------------------------------

    def root(self, salt: str = "", adapter: str = "") -> Entry:
        """Where the texts of one tenant and adapter begin."""
        name = repr((self.fingerprint, adapter, salt, self.pool.fmt, *self._forms)).encode()
        return self._roots.get(name) or Entry(None, self._hash(name), name, np.zeros(0, np.int32), 0)

    def match(self, root: Entry, tokens: bytes, max_pages: int, run: int) -> list[Entry]:
        """The longest known chain of full pages at the start of ``tokens``, at most ``max_pages``, whose runs a table
        with runs of ``run`` pages can adopt (they are as coarse, or coarser). Marks it as used.
        """
        self.expire()
        chain = self.peek(root, tokens, max_pages, run)
        self._touch(chain)
        self.stats.num_lookups += 1
        self.stats.num_hit_pages += len(chain)
        self.stats.num_missed_pages += max_pages - len(chain)
        return chain

    def peek(self, root: Entry, tokens: bytes, max_pages: int, run: int) -> list[Entry]:
        """What ``match`` would return; nothing is marked or counted."""
        width, node, chain = self._page_bytes, root, list[Entry]()
        for start in range(0, max_pages * width, width):
            child = self.child(node, tokens[start : start + width])
            if child is None or child.run < run:
                break
            chain.append(child)
            node = child
        return chain if self.thinning is None else self.thinning.usable(chain)

    def is_there(self, entry: Entry) -> bool:
        """Whether it has not been evicted since."""
        return self._entries.get(entry.key) is entry

    def child(self, node: Entry, tokens: bytes) -> Entry | None:
        """The entry of this page of tokens right after ``node``."""
        entry = self._entries.get(self._hash(node.key + tokens))
        return entry if entry is not None and entry.parent is node and entry.tokens == tokens else None

    def _touch(self, chain: Sequence[Entry]) -> None:
        self._tick += 1
        now = self._clock()
        for entry in chain:
            entry.tick, entry.used_at = self._tick, now
        if chain:
            self._settle(chain[-1])

    # Adding and holding ---------------------------------------------------------------------------------------------

    def insert(self, node: Entry, tokens: bytes, runs: Int32s, run: int) -> Entry | None:
        """A page of tokens right after ``node``, not known yet; references its pages. None if the hash collides."""
        key = self._hash(node.key + tokens)
        if key in self._entries:
            return None
        entry = self._entries[key] = Entry(node, key, tokens, runs, run)
        self.pool.ref_runs(runs, run)
        node.num_children += 1
        self._touch((entry,))
        self._settle(node)
        self.stats.num_inserted_pages += 1
        if self.on_insert is not None:
            self.on_insert(entry)
        return entry

    def upgrade(self, entry: Entry, runs: Int32s, run: int) -> None:
        """Coarser runs with the same content take the place of an entry's own, so that more tables can adopt it; or all
        of them that of a thin one's.
        """
        self.pool.ref_runs(runs, run)
        self.pool.unref_runs(entry.held_runs, entry.run)
        entry.runs, entry.run = runs, run
        if entry.thin and self.thinning is not None:
            self.thinning.thicken(entry)

    def passed(self, entries: Sequence[Entry]) -> None:
        """A sequence whose text they are a part of reads them no more in layers with windows."""
        if self.thinning is not None:
            for entry in entries:
                self.thinning.passed(entry, self._tick)

    def hold(self, entry: Entry) -> None:
        """A sequence's text (or a pin) ends in this entry: it and its ancestors stay."""
        if entry.parent is None:
            self._roots[entry.tokens] = entry
        node: Entry | None = entry
        while node is not None:
            self._add_user(node)
            node = node.parent

    def advance(self, entry: Entry) -> None:
        """The text of a sequence that held the entry's parent goes on into the entry. O(1), as a text grows often."""
        self._add_user(entry)

    def release(self, entry: Entry, until: Entry | None = None) -> None:
        """The sequence left, or went back to ``until``, an ancestor that it now holds."""
        self._touch((entry,))
        node: Entry | None = entry
        while node is not None and node is not until:
            node.users -= 1
            if node.users == 0 and node.parent is not None:
                self._num_used -= 1
                if self.thinning is not None:
                    self.thinning.idle(node)
            node = node.parent
        self._settle(entry)
        self._drop_idle_root(entry)

    def _add_user(self, entry: Entry) -> None:
        if entry.users == 0 and entry.parent is not None:
            self._num_used += 1
            if self.thinning is not None:
                self.thinning.used(entry)
        entry.users += 1
        entry.lru = -1

    def pin(self, entry: Entry, ttl: float | None = None, *, chain: Sequence[Entry] = ()) -> int:
        """Keeps the entry and its ancestors until ``unpin(handle)`` or for ``ttl`` seconds; returns the handle. Where
        sequences pass by entries, ``chain`` is the entry's: what is read of it whole stays so.
        """
        handle, whole = next(_HANDLES), list[Entry]()
        if self.thinning is not None:
            self.thinning.pin(whole := list(self.thinning.reached(chain)))
        self._pins[handle] = (entry, None if ttl is None else self._clock() + ttl, whole)
        self.hold(entry)
        return handle

    def pinned_pages(self, handle: int) -> int:
        """How many pages of tokens the pin keeps; 0 if it has ended."""
        entry, *_ = self._pins.get(handle, (None,))
        num = 0
        while entry is not None and entry.parent is not None:
            num, entry = num + 1, entry.parent
        return num

    def unpin(self, handle: int) -> bool:
        """Ends a pin; False if it has ended already."""
        entry, _, whole = self._pins.pop(handle, (None, None, ()))
        if entry is None:
            return False
        if self.thinning is not None:
            self.thinning.unpin(whole)
        self.release(entry)
        return True

    def expire(self) -> int:
        """Ends pins and drops idle entries whose time is over; returns how many pages of tokens were dropped.

        Constant work when nothing is due (pins with a ttl are few: they are looked at one by one).
        """
        if self.ttl is None and not self._pins:
            return 0
        now, num = self._clock(), 0
        for handle in [h for h, (_, deadline, _) in self._pins.items() if deadline is not None and deadline <= now]:
            self.unpin(handle)
        while self.ttl is not None and (entry := self._peek()) is not None and now - entry.used_at >= self.ttl:
            self.detach(entry)
            self.pool.unref_runs(entry.held_runs, entry.run)
            num += 1
        self.stats.num_expired_pages += num
        return num

    # Leaving --------------------------------------------------------------------------------------------------------

    def detach_oldest(self) -> Entry | None:
        """Takes the least recently used idle leaf out of the tree; its pages stay referenced (see ``Reclaim``)."""
        entry = self._peek()
        if entry is not None:
            self.detach(entry)
        return entry

    def give_up(self) -> Given | None:
        """An idle leaf leaves the tree, or windowed pages of an entry leave it: whichever was used less recently. The
        pages stay referenced. None: nothing may go.
        """
        leaf = self._peek()
        passed = None if self.thinning is None else self.thinning.oldest()
        if self.thinning is not None and passed is not None and (leaf is None or passed[1] <= leaf.tick):
            entry, _ = passed
            before = entry.runs, entry.run
            return Given(entry, *self.thinning.thin(entry), True, before)
        if leaf is None:
            return None
        return Given(leaf, leaf.held_runs, leaf.run, self.detach(leaf))

    def take_back(self, given: Given) -> None:
        """Undoes ``give_up`` (in reverse order when there were several)."""
        if given.before is None:
            self.attach(given.entry, given.in_line)
        elif self.thinning is not None:
            self.thinning.unthin(given.entry, *given.before)

    def detach(self, entry: Entry) -> bool:
        """Takes an idle leaf out of the tree. Its parent was used no earlier, and may be the next to go. Returns
        whether it was in line to be thinned, too.
        """
        parent = entry.parent
        assert parent is not None
        del self._entries[entry.key]
        entry.lru = -1
        parent.num_children -= 1
        parent.tick, parent.used_at = max(parent.tick, entry.tick), max(parent.used_at, entry.used_at)
        self._settle(parent)
        self._drop_idle_root(parent)
        return self.thinning is not None and self.thinning.left(entry)

    def attach(self, entry: Entry, in_line: bool = False) -> None:
        """Undoes ``detach`` (in reverse order when there were several)."""
        parent = entry.parent
        assert parent is not None
        self._entries[entry.key] = entry
        parent.num_children += 1
        parent.lru = -1
        self._settle(entry)
        if parent.parent is None:
            self._roots[parent.tokens] = parent
        if self.thinning is not None:
            self.thinning.is_back(entry, in_line)

    def clear(self) -> int:
        """Drops all that is neither held nor pinned; returns how many pages of tokens that was."""
        num = 0
        while (entry := self.detach_oldest()) is not None:
            self.pool.unref_runs(entry.held_runs, entry.run)
            num += 1
        self.stats.num_evicted_pages += num
        return num

    def _settle(self, entry: Entry) -> None:
        """Puts an idle leaf at its place in the heap, or marks its place as stale."""
        entry.lru = -1
        if entry.users or entry.num_children or entry.parent is None:
            return
        self._serial += 1
        entry.lru = self._serial
        heapq.heappush(self._heap, (entry.tick, self._serial, entry))
        if len(self._heap) > 64 + 2 * len(self._entries):
            self._heap = [item for item in self._heap if item[2].lru == item[1]]
            heapq.heapify(self._heap)

    def _peek(self) -> Entry | None:
        while self._heap:
            _, serial, entry = self._heap[0]
            if entry.lru == serial:
                return entry
            heapq.heappop(self._heap)
        return None

    def _drop_idle_root(self, entry: Entry) -> None:
        """Namespaces of tenants that left do not pile up."""
        if entry.parent is None and not (entry.num_children or entry.users):
            del self._roots[entry.tokens]
