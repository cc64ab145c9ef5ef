"""The few things that the disk tier asks of a file system: one object, so that tests can make them fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

HEAD_BYTES = 8192


class Files:
    """The real thing. Every method raises OSError as the system does.

    What was read or written leaves the kernel's page cache at once: a control group counts it as ours (a folder of
    1 GiB filled all that a group had above the budget), and for what is worth keeping in memory there is ``--kv-host``.
    """

    def read(self, path: Path, choose: Callable[[bytes], tuple[int, int]] | None = None) -> bytes:
        """All of a file, or the range (first byte, bytes) that ``choose`` tells from its first ``HEAD_BYTES``."""
        with open(path, "rb", buffering=0) as file:
            if choose is None:
                found = file.read()
            else:
                head = file.read(HEAD_BYTES)
                first, size = choose(head)
                found = head[first : first + size]
                if len(found) < size:
                    found += os.pread(file.fileno(), size - len(found), first + len(found))
            _forget(file.fileno())
            return found

    def write_whole(self, paths: Sequence[Path], parts: list[bytes]) -> None:
        """One file that appears under all these names (hard links), complete and on disk. Each name appears with the
        whole file behind it or not at all; one that is there already stays as it is.
        """
        fresh = paths[0].with_name(f".{paths[0].name}.{os.urandom(4).hex()}.tmp")
        try:
            with open(fresh, "wb", buffering=0) as file:
                for part in parts:
                    view = memoryview(part)
                    while view:  # a disk that is nearly full takes a part and says how much
                        view = view[file.write(view) :]
                os.fsync(file.fileno())
                _forget(file.fileno())
            for path in paths:
                with suppress(FileExistsError):  # another process wrote the same
                    os.link(fresh, path)
        finally:
            with suppress(OSError):
                fresh.unlink()

    def check_links(self, folder: Path) -> None:
        """Raises OSError where one file cannot have two names."""
        one, two = (folder / f".{os.urandom(8).hex()}.tmp" for _ in range(2))
        try:
            one.touch()
            os.link(one, two)
        finally:
            for path in (one, two):
                path.unlink(missing_ok=True)

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

    def listing(self, folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
        """Every name below and what it names; what vanishes meanwhile is left out."""
        for inner, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    yield Path(inner, name), os.stat(os.path.join(inner, name))


def _forget(fd: int) -> None:
    if hasattr(os, "posix_fadvise"):  # macOS has no such call
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
