"""The prefix cache of one store on disk: pages go there behind the steps' backs, and come back before they are needed.

    commit ─► prefix entry ─► dirty ─┄ between two steps, copied out of the pool ┄─► writer's thread ─► disk
    request ─► pages missing in memory ─► reader's thread ─► bytes ─┄ between two steps, copied in ┄─► prefix entry

The engine's thread does nothing but copy bytes; packing, hashing and the disk are the two other threads'. What waits in
between is leased (account ``staging``), and bounded: a page that finds no room is written later, or not at all. Both
ways go in runs of pages that follow each other (`write_back`, `read_back`, `tiers._run`).

Since pages are copied out as soon as they are full, a preemption moves nothing, and what gave way is read back before
its turn unless computing is faster (`swap_cost`): asynchronous swapping as in FastSwitch (arXiv:2411.18424). Pages of a
conversation stay in host memory and on disk between its turns, and the next turn computes only what is new: Pensieve
(arXiv:2312.05516), but for its order of eviction, which here is least recently used.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..budget.ledger import Lease, Ledger
from .manager import KVManager
from .prefix import Entry, token_bytes
from .read_back import Fetch, Page, Reader, Tier
from .storage import PageStorage
from .swap_cost import SwapCost
from .table import expand_runs
from .tiers._base import Name
from .tiers.disk import RUN_BYTES, DiskTier
from .tiers.host import HostTier
from .write_back import Block, Outbox

WRITE_BYTES = 16 << 20
"""Leased: what is copied out of the pool and not yet written, and a packed run on its way out and in."""
MOST_WAITING_BYTES = WRITE_BYTES - 2 * RUN_BYTES
STEP_BYTES = 4 << 20
"""Copied out after one step: half a millisecond of memory traffic."""
MOST_DIRTY, MOST_KEYS = 1 << 14, 1 << 15
"""Entries that wait to be copied out, and names on disk that are remembered: 8 MiB together."""
CLOSE_SECONDS = 10.0
YEAR_SECONDS = 365 * 86400.0
WAIT_SECONDS = 5.0
"""A disk that takes longer is not waited for."""


@dataclass(slots=True)
class PersistStats:
    """In pages of tokens, since the start."""

    num_queued: int = 0
    num_skipped: int = 0
    num_restored: int = 0
    num_fetches: int = 0
    num_recomputed: int = 0
    """Fetches that were not tried, since computing was expected to be faster."""


class Persistence:
    """Belongs to the engine's thread, but for its two helpers.

    ``lease`` holds ``WRITE_BYTES``; ``tag`` is what else decides the bytes of a page, such as the kernels' instruction
    set, or a codec that loses something.
    """

    def __init__(
        self, tier: Tier, manager: KVManager, storage: PageStorage, ledger: Ledger, lease: Lease, *, tag: str = ""
    ) -> None:
        assert manager.prefix is not None, "without a prefix cache there is nothing to keep"
        self.tier, self.stats = tier, PersistStats()
        self._manager, self._storage, self._prefix, self._ledger = manager, storage, manager.prefix, ledger
        self._tag = tag.encode()
        self._cost = SwapCost(manager.fmt.block_bytes, manager.fmt.page_size)
        self._dirty: deque[Entry] = deque()
        self._pinned: dict[bytes, float] = {}  # key on disk -> until, of pages that may not be written yet
        self._keys: dict[bytes, bytes] = {}  # key in memory -> key on disk, of the entries that were seen
        self._restoring = False
        self._lease = lease
        self._waiting = 0
        self._lock = threading.Lock()
        self._to_write = Outbox()
        self._reader = Reader(tier, self._cost)
        self._fetches: dict[int, Fetch] = {}
        self._threads = [
            threading.Thread(target=work, name=f"pagoda-kv-{name}", daemon=True)
            for name, work in (("writer", self._write_all), ("reader", self._reader.run))
        ]
        self._prefix.on_insert = self._note
        for thread in self._threads:
            thread.start()

    def keeps(self, manager: KVManager) -> bool:
        """Whether these are the pages that it keeps."""
        return manager is self._manager

    # Out of the pool ------------------------------------------------------------------------------------------------

    def _note(self, entry: Entry) -> None:
        if self._restoring:
            return
        if len(self._dirty) < MOST_DIRTY:
            self._dirty.append(entry)
        else:  # the disk does not keep up: what is older is nearer to the root, and worth more
            self.stats.num_skipped += 1

    @property
    def has_unwritten(self) -> bool:
        """Whether there are pages to copy out."""
        return bool(self._dirty)

    def flush(self, most_bytes: int = STEP_BYTES) -> None:
        """Between two steps: some of what is new goes to the writer, as far as it has room."""
        block_bytes, blocks = self._manager.fmt.block_bytes, list[Block]()
        while self._dirty and len(blocks) * block_bytes < most_bytes and self._has_room(block_bytes):
            entry = self._dirty.popleft()
            if not self._prefix.is_there(entry) or entry.thin:
                self.stats.num_skipped += 1
                continue
            assert entry.parent is not None
            name = Name(self._key_of(entry), self._key_of(entry.parent), entry.tokens)
            blocks.append((name, self._bytes_of(entry)))
            with self._lock:
                self._waiting += block_bytes
        self.stats.num_queued += len(blocks)
        if blocks:
            self._to_write.put(blocks)

    def _has_room(self, num_bytes: int) -> bool:
        return self._waiting + num_bytes <= max(MOST_WAITING_BYTES, num_bytes)

    def _bytes_of(self, entry: Entry) -> bytes:
        pages = torch.from_numpy(expand_runs(entry.runs, entry.run, 1).astype(np.int64))
        found = self._storage.pages.index_select(0, pages.to(self._storage.device)).cpu()
        return found.contiguous().view(torch.uint8).numpy().tobytes()

    def _key_of(self, entry: Entry) -> bytes:
        """The entry's name on disk. A loop, since texts are thousands of pages deep."""
        if len(self._keys) > MOST_KEYS:
            self._keys.clear()
        unnamed, node = [], entry
        while node.parent is not None and node.key not in self._keys:
            unnamed.append(node)
            node = node.parent
        key = self._keys[node.key] if node.parent is not None else DiskTier.root_key(self._tag + b"\0" + node.tokens)
        for node in reversed(unnamed):
            key = self._keys[node.key] = DiskTier.child_key(key, node.tokens)
        return key

    def _write_all(self) -> None:
        while (runs := self._to_write.take()) is not None:
            while runs:
                run = runs.pop(0)
                self.tier.write(run)
                for name, _ in run if self._pinned else ():
                    if (until := self._pinned.pop(name.key, None)) is not None:
                        self.tier.pin(name.key, until)
                self._written(len(run) * self._manager.fmt.block_bytes)

    def pin(self, tokens: Sequence[int], *, salt: str, seconds: float | None) -> None:
        """Pages of these tokens stay on disk before others', for so long (None: a year); those that are yet to be
        written will.
        """
        size, until = self._manager.fmt.page_size, time.time() + (seconds or YEAR_SECONDS)
        key = self._key_of(self._prefix.root(salt))
        for at in range(0, len(tokens) - size + 1, size):
            key = DiskTier.child_key(key, token_bytes(tokens[at : at + size]))
            if not self.tier.pin(key, until) and len(self._pinned) < MOST_DIRTY:
                self._pinned[key] = until

    def _written(self, num_bytes: int) -> None:
        with self._lock:
            self._waiting -= num_bytes

    # Into the pool --------------------------------------------------------------------------------------------------

    def fetch(
        self, seq_id: int, tokens: Sequence[int], *, salt: str, tokens_per_second: float, whole: bool = False
    ) -> None:
        """Starts to read the pages of these tokens that are on disk and not in memory, where that is expected to take
        less time than to compute them. ``tokens_per_second`` 0: not known yet. ``whole``: where some are missing
        all are read, since those in memory may leave it before the rest is there.
        """
        page_size = self._manager.fmt.page_size
        num_pages = (len(tokens) - 1) // page_size
        data = token_bytes(tokens[: num_pages * page_size])
        pieces = [data[at : at + 4 * page_size] for at in range(0, len(data), 4 * page_size)]
        chain = self._prefix.peek(self._prefix.root(salt), data, num_pages, 1)
        node, start = chain[-1] if chain else self._prefix.root(salt), len(chain)
        if whole and start < num_pages:
            node, start = self._prefix.root(salt), 0
        key, pages = self._key_of(node), list[Page]()
        for piece in pieces[start:]:
            parent, key = key, DiskTier.child_key(key, piece)
            where = self.tier.where(key)
            if where is None:
                break
            pages.append(Page(Name(key, parent, piece), where))
        if self._cost.computing_is_faster(Counter(page.where for page in pages), tokens_per_second):
            self.stats.num_recomputed += 1
            return
        pages = pages[: self._ledger.free_bytes // self._manager.fmt.block_bytes]
        if not pages:
            return
        lease = self._ledger.try_lease("staging", len(pages) * self._manager.fmt.block_bytes, "KV on its way from disk")
        if lease is None:
            return
        found = self._fetches[seq_id] = Fetch(pieces[:start], pages, lease)
        self.stats.num_fetches += 1
        self._reader.put(found)

    def is_fetching(self, seq_id: int) -> bool:
        """Whether pages for this sequence are being read, or are there and not installed."""
        return seq_id in self._fetches

    def is_pending(self, seq_id: int) -> bool:
        """Whether pages for this sequence are still being read."""
        fetch = self._fetches.get(seq_id)
        return fetch is not None and not fetch.ready.is_set()

    def install(self, seq_id: int, *, salt: str, wait: bool) -> None:
        """What was read for the sequence becomes prefix entries, as far as there is room. ``wait``: nobody else has
        anything to do meanwhile.
        """
        fetch = self._fetches.get(seq_id)
        if fetch is None or not fetch.ready.wait(WAIT_SECONDS if wait else 0):
            return
        del self._fetches[seq_id]
        self._restoring = True
        try:
            self._install(fetch, salt)
        finally:
            self._restoring = False
            fetch.lease.release()

    def _install(self, fetch: Fetch, salt: str) -> None:
        node, pages = self._prefix.root(salt), fetch.found()
        for piece in fetch.before:
            child = self._prefix.child(node, piece)
            if child is None:
                return  # the text before has left memory meanwhile
            node = child
        while pages and (child := self._prefix.child(node, pages[0].name.tokens)) is not None and not child.thin:
            node = child  # and these have come in from elsewhere
            del pages[0]
        per_block = self._manager.fmt.pages_per_block
        for block, page in zip(self._manager.restore(node, [page.name.tokens for page in pages]), pages, strict=False):
            assert page.raw is not None
            target = self._storage.pages[block * per_block : (block + 1) * per_block]
            target.copy_(torch.frombuffer(bytearray(page.raw), dtype=target.dtype).view(target.shape))
            self.stats.num_restored += 1

    def forget(self, seq_id: int) -> None:
        """The sequence ended before its pages came."""
        fetch = self._fetches.pop(seq_id, None)
        if fetch is not None:
            self._reader.cancel(fetch)

    def forget_all(self) -> None:
        """Nothing that is being read may be used."""
        for seq_id in list(self._fetches):
            self.forget(seq_id)

    def settle(self, seconds: float) -> bool:
        """Waits until all that is new is on disk; False if that takes longer."""
        deadline = time.monotonic() + seconds
        while (self._dirty or self._waiting) and time.monotonic() < deadline:
            self.flush(WRITE_BYTES)
            time.sleep(0.002)
        return not (self._dirty or self._waiting)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``stats``."""
        host = self.tier if isinstance(self.tier, HostTier) else None
        disk = self.tier if isinstance(self.tier, DiskTier) else self.tier.behind
        found: dict[str, Any] = {"waiting": len(self._dirty), **asdict(self.stats)}
        for name, tier in (("host_", host), ("", disk)):
            if tier is not None:
                found |= {f"{name}budget_bytes": tier.budget_bytes, f"{name}used_bytes": tier.used_bytes}
                long = name or "disk_"
                found |= {f"{long}codec": tier.form.text, **{f"{long}{k}": v for k, v in asdict(tier.stats).items()}}
                found[f"{long}read_bytes_per_second"] = self._cost.bytes_per_second.get(long[:-1], 0.0)
        return found

    def close(self) -> None:
        """What is new is written first, as far as that goes in ``CLOSE_SECONDS``."""
        deadline = time.monotonic() + CLOSE_SECONDS
        self.settle(CLOSE_SECONDS)
        self._to_write.close()
        self._reader.close()
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        for fetch in self._fetches.values():
            fetch.lease.release()
        self._fetches.clear()
        self._prefix.on_insert = None
