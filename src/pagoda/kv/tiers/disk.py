"""Pages on disk, found by their content: a folder with a byte budget that several processes may share.

    FOLDER/v1/3f/3f9a…c2.kv      a record (`_record`); its name is its key, its time stamp that of its last use

Nothing here is ever trusted: a record that is missing, cut short, changed, of another version or of another text is a
miss. Nothing here ever raises for the disk's sake: what cannot be written is not there later, and after an error
writing rests for a while. The least recently used records leave when the budget is full.

A pin is a time of last use that lies ahead: a pinned record is never too old and leaves after all others, but the
budget holds for it too.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zstandard

from ...core.errors import ConfigError
from ._base import TierStats
from ._files import Files
from ._record import CorruptRecord, check, child_key, pack, root_key, unpack

_log = logging.getLogger(__name__)
VERSION = "v1"
FILL_SHARE = 0.9
"""A folder that is full is emptied to this share of its budget, so that it is not swept for every page."""
REST_SECONDS = 30.0
STALE_SECONDS = 600.0
"""After that a temporary file belongs to nobody."""


class DiskTier:
    """Safe from several threads. ``clock`` gives the time of day in seconds."""

    def __init__(
        self,
        folder: Path | str,
        budget_bytes: int,
        *,
        ttl: float | None = None,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ConfigError where the folder cannot be made, or written to."""
        self.folder, self.budget_bytes, self.ttl = Path(folder).expanduser(), budget_bytes, ttl
        self.stats, self._files, self._clock = TierStats(), files or Files(), clock
        self._lock, self._rests_until = threading.Lock(), 0.0
        self._root = self.folder / VERSION
        try:
            self._files.make_folder(self._root)
            if not os.access(self._root, os.W_OK):
                raise PermissionError(13, "no right to write")
        except OSError as error:
            raise ConfigError(
                f"kv_dir {str(folder)!r} cannot be used ({error.strerror or error}); give a folder that can be written"
            ) from error
        self.used_bytes = sum(size for _, size, _ in self._files.listing(self._root))

    # Keys -----------------------------------------------------------------------------------------------------------

    root_key = staticmethod(root_key)
    child_key = staticmethod(child_key)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self._root / name[:2] / f"{name}.kv"

    # Reading and writing --------------------------------------------------------------------------------------------

    def has(self, key: bytes) -> bool:
        """Whether there is a record of that name; what it is worth is seen when it is read."""
        try:
            return self._files.exists(self._path(key))
        except OSError:
            return False

    def read(self, key: bytes, parent: bytes, tokens: bytes, raw_bytes: int | None) -> bytes | None:
        """The bytes of that page of tokens, ``raw_bytes`` of them (None: whatever their number); None if they are not
        there, or are not what they should be.
        """
        path = self._path(key)
        try:
            data = self._files.read(path)
            raw = unpack(data, key, parent, tokens, raw_bytes)
        except FileNotFoundError:
            self.stats.num_misses += 1
            return None
        except OSError as error:
            self._note_error("reading", path, error)
            self.stats.num_misses += 1
            return None
        except (CorruptRecord, zstandard.ZstdError) as error:
            _log.warning("%s is dropped: %s", path, error)
            self.stats.num_corrupt += 1
            self.stats.num_misses += 1
            self._remove(path)
            return None
        self.stats.num_hits += 1
        self.stats.read_bytes += len(data)
        try:
            if self._files.used_at(path) <= self._clock():  # else it is pinned
                self._files.touch(path)
        except OSError as error:
            self._note_error("touching", path, error)
        return raw

    def pin(self, key: bytes, until: float) -> bool:
        """Keeps that record before all that are not pinned until then (seconds of the clock); an earlier pin's longer
        time stays. False where there is no such record.
        """
        path = self._path(key)
        try:
            if self._files.used_at(path) < until:
                self._files.touch(path, until)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._note_error("pinning", path, error)
            return False
        return True

    def refuse(self, key: bytes) -> None:
        """What was read under that name could not be used: it leaves."""
        self.stats.num_corrupt += 1
        self._remove(self._path(key))

    def write(self, key: bytes, parent: bytes, tokens: bytes, raw: bytes, itemsize: int) -> bool:
        """Keeps a page of tokens; False where that was not possible, or is not tried just now."""
        if self._clock() < self._rests_until:
            return False
        path = self._path(key)
        if self.has(key):
            return True
        parts = pack(key, parent, tokens, raw, itemsize)
        size = sum(map(len, parts))
        if not self._make_room(size):
            return False
        try:
            self._files.make_folder(path.parent)
            self._files.write_whole(path, parts)
        except OSError as error:
            self._note_error("writing", path, error)
            self._rests_until = self._clock() + REST_SECONDS
            return False
        with self._lock:
            self.used_bytes += size
        self.stats.num_writes += 1
        self.stats.written_bytes += size
        return True

    # Size -----------------------------------------------------------------------------------------------------------

    def _make_room(self, size: int) -> bool:
        if self.used_bytes + size <= self.budget_bytes:
            return True
        self.collect(room=size)
        return self.used_bytes + size <= self.budget_bytes

    def collect(self, *, room: int = 0) -> int:
        """Drops what is too old, then the least recently used, until ``room`` and a tenth more are free; returns how
        many records went. Only one process sweeps at a time; others count anew and leave it to that one.
        """
        now, num = self._clock(), 0
        with self._swept_alone() as mine:
            found = sorted(self._files.listing(self._root), key=lambda one: one[2])
            used = sum(size for _, size, _ in found)
            target = self.budget_bytes
            if used + room > self.budget_bytes:
                target = max(0, min(int(self.budget_bytes * FILL_SHARE), self.budget_bytes - room))
            for path, size, used_at in found if mine else []:
                unfinished = path.suffix == ".tmp"
                old = (self.ttl is not None and now - used_at > self.ttl) or (
                    unfinished and now - used_at > STALE_SECONDS
                )
                if (old or (used > target and not unfinished)) and self._remove(path):
                    used -= size
                    num += 1
            with self._lock:
                self.used_bytes = used
        self.stats.num_evicted += num
        return num

    def verify(self) -> list[tuple[Path, str]]:
        """Reads every record; those that are wrong, and why. Nothing is changed."""
        wrong = []
        for path, _, _ in self._files.listing(self._root):
            if path.suffix == ".kv":
                try:
                    reason = check(self._files.read(path))
                except OSError as error:
                    reason = str(error.strerror or error)
                if reason is not None:
                    wrong.append((path, reason))
        return wrong

    def records(self) -> list[tuple[Path, int, float]]:
        """(file, bytes, time of last use) of all records, the newest first."""
        found = [one for one in self._files.listing(self._root) if one[0].suffix == ".kv"]
        return sorted(found, key=lambda one: -one[2])

    def repin(self, until: float, *, least: float = 0.0, most: float = float("inf")) -> int:
        """Gives every record whose time of last use lies in ``[least, most]`` another one, ``until``: one that lies
        ahead pins it, one that does not unpins it. Returns how many.
        """
        num = 0
        for path, _, used_at in self.records():
            if least <= used_at <= most:
                try:
                    self._files.touch(path, until)
                    num += 1
                except OSError as error:
                    self._note_error("pinning", path, error)
        return num

    def drop(self, paths: list[Path]) -> int:
        """Removes these records; returns how many went."""
        return sum(self._remove(path) for path in paths)

    def _remove(self, path: Path) -> bool:
        try:
            self._files.remove(path)
        except OSError as error:
            self._note_error("removing", path, error)
            return False
        return True

    def _note_error(self, what: str, path: Path, error: OSError) -> None:
        self.stats.num_errors += 1
        _log.warning("%s %s failed: %s; it is computed again instead", what, path, error.strerror or error)

    def _swept_alone(self) -> _Sweep:
        return _Sweep(self.folder / "sweep.lock")


class _Sweep:
    """True inside the ``with`` for the one process that may sweep."""

    def __init__(self, path: Path) -> None:
        self._path, self._fd = path, -1

    def __enter__(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
