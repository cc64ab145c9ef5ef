"""Pages on their way back to the pool: read by a thread of their own, in the runs in which they lie."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TypeAlias

from ..budget.ledger import Lease
from .swap_cost import SwapCost
from .tiers._base import Name
from .tiers._run import MOST_RECORDS
from .tiers.disk import DiskTier
from .tiers.host import HostTier

Tier: TypeAlias = DiskTier | HostTier


@dataclass(slots=True)
class Page:
    """A page of tokens on its way from the disk. ``raw`` None: it was not there after all."""

    name: Name
    where: str
    raw: bytes | None = None


@dataclass(slots=True)
class Fetch:
    """Pages of a text that are being read; those ``before`` them (their tokens) are in memory."""

    before: list[bytes]
    pages: list[Page]
    lease: Lease
    ready: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False

    def found(self) -> list[Page]:
        """Up to the first that was not there."""
        pages = []
        for page in self.pages:
            if page.raw is None:
                break
            pages.append(page)
        return pages


class Reader:
    """``run`` is its thread's; what is read is measured in ``cost``."""

    def __init__(self, tier: Tier, cost: SwapCost) -> None:
        self._tier, self._cost, self._lock = tier, cost, threading.Lock()
        self._queue: queue.SimpleQueue[Fetch | None] = queue.SimpleQueue()

    def put(self, fetch: Fetch) -> None:
        """It is ``ready`` when its pages are there, or are not."""
        self._queue.put(fetch)

    def cancel(self, fetch: Fetch) -> None:
        """Nobody wants it any more: its lease goes back, at once or when nobody writes into it."""
        with self._lock:
            fetch.cancelled = True
            if fetch.ready.is_set():
                fetch.lease.release()

    def close(self) -> None:
        """Ends the thread after what it was given."""
        self._queue.put(None)

    def run(self) -> None:
        while (fetch := self._queue.get()) is not None:
            self._read(fetch)
            with self._lock:
                fetch.ready.set()
                if fetch.cancelled:
                    fetch.lease.release()

    def _read(self, fetch: Fetch) -> None:
        at, corrupt = 0, self._num_corrupt
        while at < len(fetch.pages) and not fetch.cancelled:
            pages = fetch.pages[at : at + MOST_RECORDS]
            count = self._read_run(pages)
            # Where one record is corrupt others may be: they are looked through, so that all are written anew.
            if any(page.raw is None for page in pages[:count]) and self._num_corrupt == corrupt:
                return
            at += count

    def _read_run(self, pages: list[Page]) -> int:
        """Reads as many of them as lie together; returns how many were looked at."""
        started = time.perf_counter()
        found = self._tier.read([page.name for page in pages])
        for page, raw in zip(pages, found, strict=False):
            page.raw = raw
        if None not in found:
            self._cost.note(pages[0].where, len(found), time.perf_counter() - started)
        return len(found)

    @property
    def _num_corrupt(self) -> int:
        behind = self._tier.behind if isinstance(self._tier, HostTier) else None
        return self._tier.stats.num_corrupt + (0 if behind is None else behind.stats.num_corrupt)
