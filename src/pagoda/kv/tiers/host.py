"""Pages kept packed in this machine's memory: beside a device's pool, or beside the pool itself in fewer bytes.

The same records as on disk (`_record`), found by the same names, within a byte budget; what was used least recently
leaves. With a disk behind it, a page goes to both, and what has left here is read there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import zstandard

from ._base import Records, TierStats
from ._record import CorruptRecord, child_key, pack, root_key, unpack

ENTRY_BYTES = 200
"""Of a record in a dict, beside its bytes: key, objects, a place in the order."""


class HostTier:
    """Safe from several threads. As ``DiskTier`` for whoever keeps pages; ``behind``: the disk, if there is one."""

    root_key = staticmethod(root_key)
    child_key = staticmethod(child_key)

    def __init__(
        self, budget_bytes: int, *, behind: Records | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.budget_bytes, self.behind, self.stats, self.used_bytes = budget_bytes, behind, TierStats(), 0
        self._records: OrderedDict[bytes, bytes] = OrderedDict()
        self._pins: dict[bytes, float] = {}
        self._lock, self._clock = threading.Lock(), clock

    def has(self, key: bytes) -> bool:
        """Whether there is a record of that name, here or behind."""
        return key in self._records or (self.behind is not None and self.behind.has(key))

    def read(self, key: bytes, parent: bytes, tokens: bytes, raw_bytes: int | None) -> bytes | None:
        """As ``DiskTier.read``."""
        with self._lock:
            data = self._records.get(key)
            if data is not None:
                self._records.move_to_end(key)
        if data is None:
            self.stats.num_misses += 1
            return None if self.behind is None else self.behind.read(key, parent, tokens, raw_bytes)
        try:
            raw = unpack(data, key, parent, tokens, raw_bytes)
        except (CorruptRecord, zstandard.ZstdError):  # another text of the same hash, or bytes that memory changed
            self.refuse(key)
            return None
        self.stats.num_hits += 1
        self.stats.read_bytes += len(data)
        return raw

    def write(self, key: bytes, parent: bytes, tokens: bytes, raw: bytes, itemsize: int) -> bool:
        """As ``DiskTier.write``: whether it is kept, here or behind."""
        written = self.behind is not None and self.behind.write(key, parent, tokens, raw, itemsize)
        if key in self._records:
            return True
        data = b"".join(pack(key, parent, tokens, raw, itemsize))
        size = len(data) + ENTRY_BYTES
        with self._lock:
            if not self._make_room(size):
                return written
            self._records[key] = data
            self.used_bytes += size
        self.stats.num_writes += 1
        self.stats.written_bytes += size
        return True

    def pin(self, key: bytes, until: float) -> bool:
        """As ``DiskTier.pin``."""
        behind = self.behind is not None and self.behind.pin(key, until)
        with self._lock:
            if key not in self._records:
                return behind
            self._pins[key] = max(until, self._pins.get(key, 0.0))
        return True

    def refuse(self, key: bytes) -> None:
        """What was read under that name could not be used: it leaves."""
        self.stats.num_corrupt += 1
        with self._lock:
            self._drop(key)
        if self.behind is not None:
            self.behind.refuse(key)

    def _make_room(self, size: int) -> bool:
        """The least recently used leave, pinned ones after all others; the lock is held."""
        if size > self.budget_bytes:
            return False
        now = self._clock()
        for pinned in (False, True):
            for key in list(self._records) if self.used_bytes + size > self.budget_bytes else ():
                if self.used_bytes + size <= self.budget_bytes:
                    break
                if pinned or self._pins.get(key, 0.0) <= now:
                    self._drop(key)
                    self.stats.num_evicted += 1
        return True

    def _drop(self, key: bytes) -> None:
        data = self._records.pop(key, None)
        self._pins.pop(key, None)
        if data is not None:
            self.used_bytes -= len(data) + ENTRY_BYTES
