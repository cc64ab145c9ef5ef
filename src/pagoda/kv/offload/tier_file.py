"""Pages by their ids in an unnamed file: the lower tier of offloaded KV, in memory (memfd) or in a folder.

A page id is ``block * P + head`` (P pages a block, one for each layer and kv-head). What is read together are pages of
one head, so these lie side by side, as far as ``SPAN`` blocks go::

    file │ head 0: blocks 0 … 63 │ head 1: blocks 0 … 63 │ … │ head 0: blocks 64 … 127 │ …

A head of a sequence whose blocks were handed out in a row is read in runs of 64 pages. The file is sparse: what was
never written takes no bytes, and of what is free again nothing either (`TierFile.give_back`). It has no name, and goes
with the process, however that ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from ...core.errors import ConfigError
from ...core.types import KVFormat
from ...core.units import format_bytes
from ...kernels.file_runs import move_runs

SPAN = 64
"""Blocks whose pages of one head lie side by side."""

KEEP_SIZE, PUNCH_HOLE = 1, 2
"""Of Linux's fallocate."""

Int64s = npt.NDArray[np.int64]
Failures = list[tuple[int, int]]
"""(run, errno)"""


@dataclass(slots=True)
class TierTraffic:
    """What went to the file and came back since it was opened; ``freed_bytes``: of pages that it holds no more."""

    read_bytes: int = 0
    written_bytes: int = 0
    num_runs: int = 0
    num_errors: int = 0
    freed_bytes: int = 0


class TierFile:
    """Room for ``num_blocks`` blocks of ``fmt``. ``folder``: a folder on disk; None: this machine's memory.

    Raises ConfigError where the folder cannot hold that.
    """

    def __init__(self, fmt: KVFormat, num_blocks: int, folder: Path | None) -> None:
        self.fmt, self.num_blocks, self.folder = fmt, num_blocks, folder
        self.traffic = TierTraffic()
        self.head_step = SPAN * fmt.page_bytes
        """Bytes from a page of one head to that of the next in the same block."""
        self._span_bytes = SPAN * fmt.block_bytes
        self._file = _open(folder, num_blocks * fmt.block_bytes)
        self._file.truncate(-(-num_blocks // SPAN) * self._span_bytes)
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "pagoda-kv-offload")

    def places(self, page_ids: npt.NDArray[np.integer]) -> Int64s:
        """Where these pages begin, in bytes."""
        block, head = np.divmod(page_ids.astype(np.int64), self.fmt.pages_per_block)
        span, inside = np.divmod(block, SPAN)
        at: Int64s = span * self._span_bytes + inside * self.fmt.page_bytes + head * self.head_step
        return at

    def move(self, places: Int64s, sizes: Int64s, memory: Int64s, *, writes: bool) -> Failures:
        """Runs of bytes to or from addresses, now; returns those that failed."""
        failed = move_runs(self._file.fileno(), places, sizes, memory, writes=writes)
        num_bytes = int(sizes.sum())
        with self._lock:
            traffic = self.traffic
            traffic.num_runs += len(places)
            traffic.num_errors += len(failed)
            traffic.read_bytes += 0 if writes else num_bytes
            traffic.written_bytes += num_bytes if writes else 0
        return failed

    def submit(self, places: Int64s, sizes: Int64s, memory: Int64s, *, writes: bool) -> Future[Failures]:
        """As ``move``, behind the caller's back, after all that was submitted before."""
        return self._thread.submit(self.move, places, sizes, memory, writes=writes)

    def give_back(self, blocks: Iterable[int]) -> int:
        """The file system gets the bytes of these blocks, which read as zeros then; returns how many those are: none
        where it makes no holes. Between steps only: nothing of theirs is on its way.
        """
        before = self.traffic.freed_bytes
        for first, last in _spans(blocks):
            span, inside = divmod(first, SPAN)
            num_bytes, start = (last + 1 - first) * self.fmt.page_bytes, span * self._span_bytes
            if last + 1 - first == SPAN:
                holes = [(start, self._span_bytes)]
            else:
                start += inside * self.fmt.page_bytes
                holes = [(start + head * self.head_step, num_bytes) for head in range(self.fmt.pages_per_block)]
            for at, length in holes:
                self.traffic.freed_bytes += length if self._punch(at, length) else 0
        return self.traffic.freed_bytes - before

    def _punch(self, at: int, num_bytes: int) -> bool:
        punch = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
        if punch is None:
            return False
        long = ctypes.c_longlong
        while punch(self._file.fileno(), KEEP_SIZE | PUNCH_HOLE, long(at), long(num_bytes)):
            if ctypes.get_errno() != errno.EINTR:
                return False
        return True

    def drop_cached(self) -> None:
        """What the system keeps of the file in its page cache goes: the next reads are the disk's."""
        os.fdatasync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def why(self, number: int, *, writes: bool) -> str:
        """What to tell the client of a failure."""
        where = "this machine's memory" if self.folder is None else str(self.folder)
        return f"{'writing' if writes else 'reading'} its offloaded KV failed in {where}: {os.strerror(number)}"

    def close(self) -> None:
        """Everything in it is gone."""
        self._thread.shutdown()
        self._file.close()


def _open(folder: Path | None, num_bytes: int) -> BinaryIO:
    if folder is None:
        if not hasattr(os, "memfd_create"):
            raise ConfigError("kv_offload in memory needs Linux (memfd); give a folder with kv_offload_dir")
        return open(os.memfd_create("pagoda-kv"), "r+b", buffering=0)
    try:
        free = shutil.disk_usage(folder).free
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
    except OSError as error:
        raise ConfigError(
            f"kv_offload_dir {str(folder)!r} cannot be used ({error.strerror}); give a folder that can be written to"
        ) from error
    if free < num_bytes:
        file.close()
        raise ConfigError(
            f"kv_offload is {format_bytes(num_bytes)}, but {folder} has {format_bytes(free)} free; ask for less"
        )
    return file  # type: ignore[return-value]


def _spans(blocks: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbouring blocks of one span: (first, last)."""
    found: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if found and found[-1][1] + 1 == block and block % SPAN:
            found[-1] = (found[-1][0], block)
        else:
            found.append((block, block))
    return found


def runs_of(places: Int64s, page_bytes: int) -> tuple[Int64s, Int64s, Int64s]:
    """Pages in this order, joined where they lie side by side: (index of the first page, its place, bytes) of each."""
    if not len(places):
        return places, places, places
    first: Int64s = np.flatnonzero(np.diff(places, prepend=places[0] - 2 * page_bytes) != page_bytes)
    sizes: Int64s = np.diff(first, append=len(places)) * page_bytes
    return first, places[first], sizes
