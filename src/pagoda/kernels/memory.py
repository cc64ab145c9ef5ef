"""Memory for weights: on huge pages, since a step reads all of it once, from front to back, and on all memory nodes."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from math import prod

import torch
from torch import Tensor

from ..core.nodes import Node, nodes_of, read_nodes

HUGE_BYTES = 2 << 20  # a huge page of x86-64 and of AArch64 with pages of 4 KiB
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of linux/mman.h
_MBIND = {"x86_64": 237, "aarch64": 235}  # the system call's number
_INTERLEAVE = 3  # MPOL_INTERLEAVE of linux/mempolicy.h


def empty_bytes(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """uint8, not filled. On a CPU, what is larger than two huge pages begins at one and asks for them.

    Only whole huge pages inside the tensor are asked for, so the resident bytes stay those of the tensor.
    """
    num_bytes = prod(shape)
    if device.type != "cpu" or num_bytes < 2 * HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=torch.uint8, device=device)
    mapping = mmap.mmap(-1, num_bytes + HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)  # keeps the mapping alive
    start = -whole.data_ptr() % HUGE_BYTES
    with suppress(OSError):  # a kernel without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE, start, num_bytes // HUGE_BYTES * HUGE_BYTES)
    spread(whole.data_ptr(), len(mapping))
    return whole[start : start + num_bytes].view(shape)


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
