"""How many of torch's own threads work, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(num: int) -> Iterator[int]:
    """As many of them, and how many there were. With one a sum is the same whatever the machine has."""
    before = torch.get_num_threads()
    if before != num:
        torch.set_num_threads(num)
    try:
        yield before
    finally:
        if before != num:
            torch.set_num_threads(before)
