"""Pages on disk, found by their content: a folder with a byte budget that several processes may share.

    FOLDER/v2/3f/3f9a…c2.kv      a run (`_run`): records of pages that follow each other in a text. The file has a name
                                 (hard link) for each of them, their keys; its time stamp is that of its last use

Nothing here is ever trusted: a record that is missing, cut short, changed, of another version or of another text is a
miss. Nothing here ever raises for the disk's sake: what cannot be written is not there later, and after an error
writing rests for a while. The least recently used runs leave when the budget is full, those of other versions first.

A pin is a time of last use that lies ahead: a pinned run is never too old and leaves after all others, but the budget
holds for it too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ._base import Name, TierStats
from ._files import Files
from ._folder import Stored, Sweep, open_folder, stored_in
from ._form import ExactForm, Form
from ._record import CorruptRecord, check, child_key, pack, root_key, unpack
from ._run import MOST_RECORDS, Place, asked, pack_run, read_places

_log = logging.getLogger(__name__)
VERSION = "v2"
RUN_BYTES, RUN_SHARE = 4 << 20, 16
"""A file has at most so many bytes (a few milliseconds of a disk's time), and at most that part of the budget."""
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
        """Raises ConfigError where the folder cannot be made, or written to, or files there have one name only."""
        self.folder, self.budget_bytes, self.ttl = Path(folder).expanduser(), budget_bytes, ttl
        self.stats, self._files, self._clock = TierStats(), files or Files(), clock
        self.form: Form = ExactForm()
        self._lock, self._rests_until = threading.Lock(), 0.0
        self._root = self.folder / VERSION
        open_folder(self._root, self._files)
        self.used_bytes = sum(file.num_bytes for file in self._stored())

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

    def where(self, key: bytes) -> str | None:
        """As `Records.where`."""
        return "disk" if self.has(key) else None

    def read(self, names: Sequence[Name]) -> list[bytes | None]:
        """As `Records.read`: what is asked for and lies in the first one's run, in one go."""
        path, places = self._path(names[0].key), list[Place]()

        def choose(head: bytes) -> tuple[int, int]:
            places[:] = asked(read_places(head), names)
            return places[0].first, sum(place.size for place in places)

        try:
            data = memoryview(self._files.read(path, choose))
        except FileNotFoundError:
            self.stats.num_misses += 1
            return [None]
        except OSError as error:
            self._note_error("reading", path, error)
            self.stats.num_misses += 1
            return [None]
        except CorruptRecord as error:
            self._refuse(path, error)
            return [None]
        self.stats.num_read_runs += 1
        self.stats.read_bytes += len(data)
        self._touch(path)
        start = places[0].first
        pieces = (bytes(data[place.first - start :][: place.size]) for place in places)
        return [self._raw(name, piece) for name, piece in zip(names, pieces, strict=False)]

    def _raw(self, name: Name, data: bytes) -> bytes | None:
        try:
            raw = self.form.unpack(unpack(data, *name))
        except CorruptRecord as error:
            self._refuse(self._path(name.key), error)
            return None
        self.stats.num_hits += 1
        return raw

    def _refuse(self, path: Path, error: CorruptRecord) -> None:
        _log.warning("%s is dropped: %s", path, error)
        self.stats.num_corrupt += 1
        self.stats.num_misses += 1
        self._remove(path)

    def _touch(self, path: Path) -> None:
        try:
            if self._files.used_at(path) <= self._clock():  # else it is pinned
                self._files.touch(path)
        except OSError as error:
            self._note_error("touching", path, error)

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

    def write(self, run: Sequence[tuple[Name, bytes]]) -> int:
        """As `Records.write`: one file, and one fsync, for as many as ``RUN_BYTES`` hold. None is kept where that was
        not possible, or is not tried just now.
        """
        fresh = [one for one in run if not self.has(one[0].key)]
        kept = len(run) - len(fresh)
        for records in self._files_of(fresh):
            if self._clock() < self._rests_until or not self._write_file(records):
                break
            kept += len(records)
        return kept

    def _files_of(self, run: Sequence[tuple[Name, bytes]]) -> Iterator[list[tuple[bytes, list[bytes]]]]:
        """Packed, in one list for each file."""
        most, size = min(RUN_BYTES, self.budget_bytes // RUN_SHARE), 0
        records: list[tuple[bytes, list[bytes]]] = []
        for name, raw in run:
            parts = pack(*name, self.form.pack(raw), self.form.itemsize)
            num_bytes = sum(map(len, parts))
            if records and (size + num_bytes > most or len(records) == MOST_RECORDS):
                yield records
                records, size = [], 0
            records.append((name.key, parts))
            size += num_bytes
        if records:
            yield records

    def _write_file(self, records: list[tuple[bytes, list[bytes]]]) -> bool:
        parts, paths = pack_run(records), [self._path(key) for key, _ in records]
        size = sum(map(len, parts))
        if not self._make_room(size):
            return False
        try:
            for folder in {path.parent for path in paths}:
                self._files.make_folder(folder)
            self._files.write_whole(paths, parts)
        except OSError as error:
            self._note_error("writing", paths[0], error)
            self._rests_until = self._clock() + REST_SECONDS
            return False
        with self._lock:
            self.used_bytes += size
        self.stats.num_writes += len(records)
        self.stats.num_written_runs += 1
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
        many names went. Only one process sweeps at a time; others count anew and leave it to that one.
        """
        now, num = self._clock(), 0
        with Sweep(self.folder / "sweep.lock") as mine:
            found = sorted(self._stored(), key=lambda file: (file.is_readable, file.used_at))
            used = sum(file.num_bytes for file in found)
            target = self.budget_bytes
            if used + room > self.budget_bytes:
                target = max(0, min(int(self.budget_bytes * FILL_SHARE), self.budget_bytes - room))
            for file in found if mine else []:
                age = now - file.used_at
                leaves = (self.ttl is not None and age > self.ttl) or used > target
                gone = file.names if leaves else []
                gone = gone + (file.unfinished if age > STALE_SECONDS else [])
                num_gone = self.drop(gone)
                num += num_gone
                if num_gone == len(file.names) + len(file.unfinished):
                    used -= file.num_bytes
            with self._lock:
                self.used_bytes = used
        self.stats.num_evicted += num
        return num

    def verify(self) -> list[tuple[Path, str]]:
        """Reads every record; those that are wrong, and why. Nothing is changed."""
        wrong = []
        for file in self._readable():
            try:
                data = self._files.read(file.names[0])
                places = {place.key.hex(): place for place in read_places(data)}
            except (OSError, CorruptRecord) as error:
                wrong += [(path, getattr(error, "strerror", None) or str(error)) for path in file.names]
                continue
            for path in file.names:
                place = places.get(path.stem)
                reason = "it is not in this run"
                if place is not None:
                    reason = check(data[place.first : place.first + place.size]) or ""
                if reason:
                    wrong.append((path, reason))
        return wrong

    def records(self) -> list[tuple[Path, int, float]]:
        """(name, bytes, time of last use) of all records, the newest first. Those of one file have equal shares."""
        found = []
        for file in self._readable():
            count = len(file.names)
            sizes = [(at + 1) * file.num_bytes // count - at * file.num_bytes // count for at in range(count)]
            found += [(path, size, file.used_at) for path, size in zip(sorted(file.names), sizes, strict=True)]
        return sorted(found, key=lambda one: -one[2])

    def _readable(self) -> list[Stored]:
        return [file for file in self._stored() if file.is_readable and file.names]

    def _stored(self) -> list[Stored]:
        return stored_in(self.folder, VERSION, self._files)

    def repin(self, until: float, *, least: float = 0.0, most: float = float("inf")) -> int:
        """Gives every record whose time of last use lies in ``[least, most]`` another one, ``until``: one that lies
        ahead pins it, one that does not unpins it. Returns how many.
        """
        num = 0
        for file in self._readable():
            if least <= file.used_at <= most:
                try:
                    self._files.touch(file.names[0], until)
                    num += len(file.names)
                except OSError as error:
                    self._note_error("pinning", file.names[0], error)
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
