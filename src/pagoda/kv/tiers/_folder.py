"""The folder of the disk tier: its files, each with its names, and the lock of whoever makes it smaller."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import ConfigError
from ._files import Files

_OURS = re.compile(r"v\d+/[0-9a-f]{2}/\.?[0-9a-f]{64}\.kv(\.[0-9a-f]+\.tmp)?")

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(slots=True)
class Stored:
    """One file: its names by which pages are found, other names (it is being written, or its writer died)."""

    names: list[Path]
    unfinished: list[Path]
    num_bytes: int
    used_at: float
    is_readable: bool
    """Of this version."""


def open_folder(root: Path, files: Files) -> None:
    """Makes it where it is not there. Raises ConfigError where that, or writing, or a second name of a file fails."""
    said = f"kv_dir {str(root.parent)!r}"
    try:
        files.make_folder(root)
        if not os.access(root, os.W_OK):
            raise PermissionError(errno.EACCES, "no right to write")
    except OSError as error:
        raise ConfigError(
            f"{said} cannot be used ({error.strerror or error}); give a folder that can be written"
        ) from error
    try:
        files.check_links(root)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise ConfigError(f"{said} is on a file system without hard links; give a folder on another one") from error


def stored_in(folder: Path, version: str, files: Files) -> list[Stored]:
    """All files of all versions; what else lies in the folder is none of ours."""
    found: dict[tuple[int, int], Stored] = {}
    for path, stat in (one for root in folder.glob("v[0-9]*") for one in files.listing(root)):
        inner = path.relative_to(folder).as_posix()
        if _OURS.fullmatch(inner):
            is_readable = inner.startswith(f"{version}/")
            file = found.setdefault(
                (stat.st_dev, stat.st_ino), Stored([], [], stat.st_size, stat.st_mtime, is_readable)
            )
            (file.unfinished if path.suffix == ".tmp" else file.names).append(path)
    return list(found.values())


class Sweep:
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
