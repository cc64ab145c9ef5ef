"""Runs of bytes between a file and memory, many at once."""

from __future__ import annotations

import ctypes
import errno
import os

import numpy as np
import numpy.typing as npt

from ._optional import extension

Int64s = npt.NDArray[np.int64]


def move_runs(file: int, places: Int64s, sizes: Int64s, memory: Int64s, *, writes: bool) -> list[tuple[int, int]]:
    """Run i is ``sizes[i]`` bytes at ``places[i]`` of the open file and at the address ``memory[i]``; ``writes``: from
    memory to the file. Returns (run, errno) of those that failed; the others are whole.

    Other threads of Python go on meanwhile. Whoever calls keeps the memory alive.
    """
    found = extension()
    if found is None:
        return move_runs_plainly(file, places, sizes, memory, writes=writes)
    places, sizes, memory = (np.ascontiguousarray(x, np.int64) for x in (places, sizes, memory))
    failed: list[tuple[int, int]] = found.move_runs(
        file, writes, places.ctypes.data, sizes.ctypes.data, memory.ctypes.data, len(places)
    )
    return failed


def move_runs_plainly(
    file: int, places: Int64s, sizes: Int64s, memory: Int64s, *, writes: bool
) -> list[tuple[int, int]]:
    """The plain twin of ``move_runs``."""
    failed = []
    for run, (at, left, address) in enumerate(zip(places.tolist(), sizes.tolist(), memory.tolist(), strict=True)):
        view = memoryview((ctypes.c_char * left).from_address(address)).cast("B")
        try:
            while view:
                done = os.pwrite(file, view, at) if writes else os.preadv(file, [view], at)
                if not done:
                    raise OSError(errno.ENODATA, "the file ends before the run")
                view, at = view[done:], at + done
        except OSError as error:
            failed.append((run, error.errno or errno.EIO))
    return failed
