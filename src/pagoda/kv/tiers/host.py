"""Pages kept packed in this machine's memory: beside a device's pool, or beside the pool itself in fewer bytes.

The same records as on disk (`_record`), found by the same names, within a byte budget; what was used least recently
leaves. With a disk behind it, a page goes to both, each in its own form, and what has left here is read there.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from ._base import Name, Records, TierStats
from ._form import ExactForm, Form
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
        self.form: Form = ExactForm()
        self._records: OrderedDict[bytes, bytes] = OrderedDict()
        self._pins: dict[bytes, float] = {}
        self._lock, self._clock = threading.Lock(), clock

    def has(self, key: bytes) -> bool:
        """Whether there is a record of that name, here or behind."""
        return self.where(key) is not None

    def where(self, key: bytes) -> str | None:
        """As `Records.where`."""
        if key in self._records:
            return "host"
        return None if self.behind is None else self.behind.where(key)

    def read(self, names: Sequence[Name]) -> list[bytes | None]:
        """As `Records.read`: as many as are here, or as lie together behind."""
        with self._lock:
            data = list[bytes]()
            for name in names:
                if name.key not in self._records:
                    break
                self._records.move_to_end(name.key)
                data.append(self._records[name.key])
        if not data:
            self.stats.num_misses += 1
            return [None] if self.behind is None else self.behind.read(names)
        self.stats.num_read_runs += 1
        return [self._raw(name, one) for name, one in zip(names, data, strict=False)]

    def _raw(self, name: Name, data: bytes) -> bytes | None:
        try:
            raw = self.form.unpack(unpack(data, *name))
        except CorruptRecord:  # another text of the same hash, or bytes that memory changed
            self.stats.num_corrupt += 1
            with self._lock:
                self._drop(name.key)
            return None
        self.stats.num_hits += 1
        self.stats.read_bytes += len(data)
        return raw

    def write(self, run: Sequence[tuple[Name, bytes]]) -> int:
        """As `Records.write`: how many are kept, here or behind."""
        behind = 0 if self.behind is None else self.behind.write(run)
        new = [self._keep(name, raw) for name, raw in run if name.key not in self._records]
        self.stats.num_written_runs += any(new)
        return max(behind, len(run) - new.count(False))

    def _keep(self, name: Name, raw: bytes) -> bool:
        data = b"".join(pack(*name, self.form.pack(raw), self.form.itemsize))
        size = len(data) + ENTRY_BYTES
        with self._lock:
            if not self._make_room(size):
                return False
            self._records[name.key] = data
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
