"""What the system keeps of a file, for tests of those who promise that nothing stays."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def in_page_cache(file: Path) -> int:
    """Pages of the file that the system holds (asking by a read would bring some in)."""
    with open(file, "rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    here = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
    first = ctypes.c_char.from_buffer(mapped)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), here) == 0
    del first
    return sum(page & 1 for page in here)


def drop(file: Path) -> None:
    """Nothing of it stays."""
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
