"""Memory for weights: on huge pages, since a step reads all of it once, from front to back."""

from __future__ import annotations

import mmap
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

HUGE_BYTES = 2 << 20  # a huge page of x86-64 and of AArch64 with pages of 4 KiB


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
    return whole[start : start + num_bytes].view(shape)
