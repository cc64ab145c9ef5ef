"""The few things that the disk tier asks of a file system: one object, so that tests can make them fail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


class Files:
    """The real thing. Every method raises OSError as the system does.

    What was read or written leaves the kernel's page cache at once: a control group counts it as ours (a folder of
    1 GiB filled all that a group had above the budget), and for what is worth keeping in memory there is ``--kv-host``.
    """

    def read(self, path: Path) -> bytes:
        with open(path, "rb", buffering=0) as file:
            found = file.read()
            _forget(file.fileno())
            return found

    def write_whole(self, path: Path, parts: list[bytes]) -> None:
        """The file appears under its name complete and on disk, or not at all."""
        fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(fresh, "wb", buffering=0) as file:
                for part in parts:
                    view = memoryview(part)
                    while view:  # a disk that is nearly full takes a part and says how much
                        view = view[file.write(view) :]
                os.fsync(file.fileno())
                _forget(file.fileno())
            fresh.replace(path)
        except OSError:
            with suppress(OSError):
                fresh.unlink()
            raise

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def touch(self, path: Path, used_at: float | None = None) -> None:
        """Notes a time of last use, now where none is said."""
        os.utime(path, None if used_at is None else (used_at, used_at))

    def used_at(self, path: Path) -> float:
        return path.stat().st_mtime

    def exists(self, path: Path) -> bool:
        return path.exists()

    def listing(self, folder: Path) -> Iterator[tuple[Path, int, float]]:
        """(file, bytes, time of last use) of every file below; what vanishes meanwhile is left out."""
        for inner, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    found = os.stat(os.path.join(inner, name))
                    yield Path(inner, name), found.st_size, found.st_mtime


def _forget(fd: int) -> None:
    if hasattr(os, "posix_fadvise"):  # macOS has no such call
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
