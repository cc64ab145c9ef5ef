"""Memory for weights: on huge pages, since a step reads all of it once, from front to back, and on all memory nodes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from math import prod
from typing import BinaryIO

import torch
from torch import Tensor

from ..core.nodes import Node, nodes_of, read_nodes

HUGE_BYTES = 2 << 20  # a huge page of x86-64 and of AArch64 with pages of 4 KiB
LEAST_BYTES, TRAY_BYTES = 1 << 20, 16 * HUGE_BYTES  # what asks for huge pages at all; where short ones lie together
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # MADV_POPULATE_READ, MADV_POPULATE_WRITE of linux/mman.h
_STRETCH_BYTES = 64 << 20  # of a file, between two looks at how far it is
_MBIND = {"x86_64": 237, "aarch64": 235}  # the system call's number
_INTERLEAVE = 3  # MPOL_INTERLEAVE of linux/mempolicy.h


def empty_bytes(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """uint8, not filled. On a CPU, what is larger than two huge pages begins at one and asks for them; what is shorter,
    from 1 MB on, lies beside others on a tray of them.

    Only whole huge pages inside the tensor are asked for, so the resident bytes stay those of the tensor; a tray's
    last page is the exception, and a tray goes back to the system with the last tensor on it.
    """
    num_bytes = prod(shape)
    if device.type != "cpu" or num_bytes < LEAST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=torch.uint8, device=device)
    if num_bytes < 2 * HUGE_BYTES:
        return _TRAYS.place(num_bytes).view(shape)
    mapping, start = huge_mapping(num_bytes)
    return torch.frombuffer(mapping, dtype=torch.uint8, offset=start, count=num_bytes).view(shape)


def huge_bytes(num_bytes: int) -> Tensor:
    """uint8 in a CPU's memory, all zero and not resident before it is touched: ``num_bytes``, or whole huge pages where
    the last would be used by half. What is shorter than half of one gets none.
    """
    whole = (num_bytes + HUGE_BYTES // 2) // HUGE_BYTES * HUGE_BYTES
    if not whole or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(num_bytes, dtype=torch.uint8)
    num_bytes = max(num_bytes, whole)
    mapping, start = huge_mapping(num_bytes)
    return torch.frombuffer(mapping, dtype=torch.uint8, offset=start, count=num_bytes)


def huge_mapping(num_bytes: int) -> tuple[mmap.mmap, int]:
    """A mapping, which a tensor on it keeps alive, and where in it the first huge page begins; none is touched."""
    mapping = mmap.mmap(-1, num_bytes + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
    start = -address % HUGE_BYTES
    with suppress(OSError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE, start, num_bytes // HUGE_BYTES * HUGE_BYTES)
    spread(address, len(mapping))
    return mapping, start


class _Trays:
    """Weights of one to four MB side by side, put down once (`shelves` has pieces that come and go). On small pages the
    0.5B shape's projections of attention, 88 MB in all, took 4.2 to 4.6 ms of a step on a virtual Xeon, and take 3.5.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mapping: weakref.ref[mmap.mmap] | None = None
        self._start = self._used = 0

    def place(self, num_bytes: int) -> Tensor:
        with self._lock:
            mapping = None if self._mapping is None else self._mapping()
            if mapping is None or self._used + num_bytes > TRAY_BYTES:
                mapping, self._start = huge_mapping(TRAY_BYTES)
                self._mapping, self._used = weakref.ref(mapping), 0
            tensor = torch.frombuffer(mapping, dtype=torch.uint8, offset=self._start + self._used, count=num_bytes)
            self._used += -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            return tensor


_TRAYS = _Trays()


def spread(address: int, num_bytes: int, nodes: Sequence[int] | None = None) -> bool:
    """Pages of these bytes that nobody has touched yet will lie on memory ``nodes`` in turn, by default on those beside
    which this thread may run (`core.nodes`); a page begins at ``address``. False where there is one node only, or where
    the system forbids it (`pagoda doctor` says so): then a page lies on the node of the thread that touches it first.
    """
    chosen = near_nodes(frozenset(os.sched_getaffinity(0))) if nodes is None else tuple(nodes)
    number = _MBIND.get(platform.machine())
    if number is None or not chosen or (nodes is None and len(chosen) < 2):
        return False
    mask = sum(1 << node for node in chosen).to_bytes(max(chosen) // 64 * 8 + 8, "little")
    num_bits = ctypes.c_ulong(8 * len(mask) + 1)  # the kernel takes one off
    place = ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)
    done = ctypes.CDLL(None).syscall(ctypes.c_long(number), *place, _INTERLEAVE, mask, num_bits, 0)
    return bool(done == 0)


def may_spread(nodes: Sequence[int]) -> bool:
    """Whether the system lets this process place pages: containers often may not."""
    page = torch.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=torch.uint8)
    return spread(page.data_ptr(), mmap.PAGESIZE, nodes)


def near_nodes(cpus: frozenset[int]) -> tuple[int, ...]:
    """Numbers of the memory nodes beside which these CPUs are."""
    return tuple(node.number for node in nodes_of(_nodes(), cpus))


@cache
def _nodes() -> list[Node]:
    return read_nodes()


def map_file(file: BinaryIO, num_bytes: int, progress: Callable[[int], None]) -> Tensor:
    """uint8: the file's first bytes as the system's cache has them, which nobody may write to; ``progress(bytes)`` is
    told how many are there. Where the cache holds them on huge pages, they are mapped so.

    Raises OSError where the system cannot read them. Whoever makes a mapped file shorter ends the process.
    """
    mapping = mmap.mmap(file.fileno(), num_bytes, prot=mmap.PROT_READ)
    with suppress(OSError, AttributeError):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        tensor = torch.frombuffer(mapping, dtype=torch.uint8)
    advise = ctypes.CDLL(None, use_errno=True).madvise  # mmap.madvise holds the interpreter's lock
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start in range(0, num_bytes, _STRETCH_BYTES):
        count = min(_STRETCH_BYTES, num_bytes - start)
        if advise(tensor.data_ptr() + start, count, _POPULATE_READ) and ctypes.get_errno() in (errno.EFAULT, errno.EIO):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        progress(start + count)  # a kernel before 5.14 brings pages when they are read
    return tensor


def touch_behind(memory: Tensor) -> threading.Thread | None:
    """The system provides the pages of this memory (from ``empty_bytes``) from its end, on a thread of its own, while
    the caller fills it from its front; where they meet nothing is left to do. What is written is not changed.

    A page costs its zeroing, and on a virtual machine often the host's own page behind it: 0.4 to 2.5 GB/s on a core,
    where a disk gives 1 to 2. The thread ends early when the memory is given up. None where there is little to provide.
    """
    if memory.device.type != "cpu" or memory.nbytes < 4 * HUGE_BYTES:
        return None
    thread = threading.Thread(target=_touch, args=(weakref.ref(memory),), name="pagoda-touch", daemon=True)
    thread.start()
    return thread


def _touch(memory: weakref.ref[Tensor]) -> None:
    advise = ctypes.CDLL(None).madvise  # mmap.madvise holds the interpreter's lock
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    found = memory()
    left = 0 if found is None else found.nbytes // HUGE_BYTES
    while left > 0 and found is not None:
        left -= 1
        if advise(found.data_ptr() + left * HUGE_BYTES, HUGE_BYTES, _POPULATE_WRITE):
            return  # a kernel before 5.14: pages come when they are written
        del found
        found = memory()
