"""Acts of evictions of several sequences in one call (csrc/acts.hpp): what `ops.evict` does to one, and what an
act does to its page table, for tables whose pages are nobody else's.

Not an op: nothing here is a tensor's but addresses, and the plain twin is the engine's own way from one to the next
(`engine.eviction`), which it goes wherever this one is not able to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._optional import extension
from .dispatch import restriction
from .layout import PageLayout

Place = tuple[int, int]
"""Where float32 ``[rows, columns]`` lie that are remembered of each slot: their address, and columns."""


def able(pages: Tensor) -> bool:
    """Whether acts on these pages can run here."""
    return pages.device.type == "cpu" and restriction() in ("", "cpu") and extension() is not None


def new_act(bases: npt.NDArray[np.int32], counts: npt.NDArray[np.int32], lens: npt.NDArray[np.int32], run: int) -> Any:
    """One act on a table of bases ``[R, W]`` of runs of ``run`` pages, counts and lens ``[R]``, which it changes and
    which must outlive it. Its methods are those of csrc/bind_acts.cpp.
    """
    assert bases.flags.c_contiguous
    act = extension().Act(bases.ctypes.data, *bases.shape, run, counts.ctypes.data, lens.ctypes.data)
    return act


def run_acts(pages: Tensor, layout: PageLayout, refs: npt.NDArray[np.int32], acts: Sequence[Any]) -> None:
    """All of them. ``refs``: owners of every page; those that are given up have none afterwards."""
    from ._extension import store_of

    extension().run_acts(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        refs.ctypes.data, acts, torch.get_num_threads(),
    )  # fmt: skip
