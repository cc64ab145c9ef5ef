"""Reading files past the page cache, so that what was read counts nowhere but in our own buffers.

Pages that the system caches on a read belong to the process's cgroup: a budget enforced by one would be eaten by copies
of what we hold already. And a large direct read is faster: 1.1 GB/s against 0.46 for a cold read through the cache on
a cloud disk. Where the file system has no direct reads (tmpfs), pages are read through the cache and dropped at once.
"""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import WeightsError

if TYPE_CHECKING:
    import torch

ALIGN = 4096  # of offsets, lengths and addresses of direct reads
CHUNK_BYTES = 16 << 20  # of one read: on a busy machine every read waits for its thread to be woken
_PROBE_BYTES = 64 << 20  # read directly after a look into the page cache that found nothing


def aligned_buffer(num_bytes: int) -> torch.Tensor:
    """uint8 of whole pages, which go back to the system with the last reference."""
    import numpy as np
    import torch

    return torch.from_numpy(np.frombuffer(mmap.mmap(-1, max(ALIGN, _up(num_bytes))), np.uint8))


def span_bytes(num_bytes: int) -> int:
    """Room for ``num_bytes`` from anywhere in a file, read in whole pages."""
    return _up(num_bytes + ALIGN)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written to, or another one takes its place."""

    inode: int
    num_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


class DirectFile:
    """One file, open. ``use_cache``: take pages that happen to be in the page cache from there (never put any in).

    Reads may come from several threads at once.
    """

    def __init__(self, path: Path, *, use_cache: bool = False) -> None:
        self.path, self._use_cache = path, use_cache
        try:
            self._plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            self._direct = -1
        self._cold_from = self._cold_until = 0

    @property
    def stamp(self) -> Stamp:
        return Stamp.of(os.fstat(self._plain))

    def read(self, offset: int, num_bytes: int, buffer: torch.Tensor, what: str) -> torch.Tensor:
        """Bytes of the file, somewhere in ``buffer`` (from ``aligned_buffer``, with ``span_bytes`` of room).

        Raises WeightsError naming the file and ``what``.
        """
        first = offset // ALIGN * ALIGN
        skip, view = offset - first, memoryview(buffer.numpy())  # type: ignore[arg-type]
        done, wanted = 0, skip + num_bytes
        while done < wanted:
            part = view[done : done + min(CHUNK_BYTES, _up(wanted - done))]
            try:
                got = self._read(part, first + done)
            except OSError as error:
                raise WeightsError(f"{self.path}: {what} cannot be read ({error.strerror})") from error
            done += got
            if got == 0 or (got % ALIGN and done < wanted):  # only the end of a file is no whole page
                raise WeightsError(f"{self.path}: {what} ends early: the file became shorter while read")
        return buffer[skip:wanted]

    def _read(self, part: memoryview, at: int) -> int:
        if self._use_cache and at >= self._cold_until and (got := self._cached(part, at)):
            return got
        if self._direct >= 0:
            try:
                return os.preadv(self._direct, [part], at)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                os.close(self._direct)  # the system took the flag, but its file system does not read that way
                self._direct = -1
        got = os.preadv(self._plain, [part], at)
        if not self._use_cache:
            os.posix_fadvise(self._plain, at, got, os.POSIX_FADV_DONTNEED)
        return got

    def _cached(self, part: memoryview, at: int) -> int:
        """A page is asked for alone first: the system answers a question for 8 MiB that are not there by reading them,
        which took an eighth of the disk's time, one such question in 64 MiB.
        """
        try:
            first = os.preadv(self._plain, [part[:ALIGN]], at, os.RWF_NOWAIT)
            rest = os.preadv(self._plain, [part[first:]], at + first, os.RWF_NOWAIT) if first == ALIGN else 0
            got = first + rest
        except OSError:  # not there, or a system that cannot say
            got = 0
        if got < len(part):
            if self._cold_until:
                self._forget_probe()
            self._cold_from, self._cold_until = at, at + _PROBE_BYTES
        return got

    def _forget_probe(self) -> None:
        """Newer kernels read ahead where they are only asked what they have: 100 MB of a file of 2.5 GB stayed."""
        os.posix_fadvise(self._plain, self._cold_from, self._cold_until - self._cold_from, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self._cold_until:
            self._forget_probe()
        os.close(self._plain)
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1


def _up(num_bytes: int) -> int:
    return -(-num_bytes // ALIGN) * ALIGN
