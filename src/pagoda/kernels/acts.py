"""Acts of evictions of several sequences at once (csrc/acts.hpp): what `ops.evict` does to one, and what an act does to
its page table. Pages that are written and have other owners are copied first.

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


def look(
    act: Any, ring: Tensor, heads: int, num_seen: int, scale: float, soft_cap: float, positions: Place, unnumbered: int
) -> None:
    """What ``act`` ranks slots by was not summed up: it is what the newest queries give to the slots that are left
    (`ops.window_sums`).

    ring         ``[L, w, heads * G, Dk]``, the queries of the tokens before ``num_seen``, token t at ``t % w``
    positions    of each slot, which move with it; those of the newest ``unnumbered`` of every head, the newest tokens,
                 are written first
    """
    from ._extension import DTYPES

    assert ring.is_contiguous()
    group = ring.shape[2] // heads
    act.look(
        ring.data_ptr(), DTYPES[ring.dtype], ring.shape[1], heads, group, num_seen, scale, soft_cap, positions,
        unnumbered,
    )  # fmt: skip


def choose_acts(
    pages: Tensor, layout: PageLayout, refs: npt.NDArray[np.int32], acts: Sequence[Any], num_threads: int = 1
) -> None:
    """What each of them will do is judged, and nothing done. ``refs``: owners of every page. Then an act says how many
    slots it drops (``dropped``); one that cannot be says why (``error``), now or after `run_acts`. ``num_threads``
    compute what the newest queries give.
    """
    extension().choose_acts(*_ground(pages, layout, refs), acts, num_threads)


def num_copies(refs: npt.NDArray[np.int32], acts: Sequence[Any]) -> int:
    """Runs that `run_acts` will need at most for copies of what they write and others own, after `choose_acts`. All of
    them act on runs of one length.
    """
    found: int = extension().copies_of(refs.ctypes.data, acts)
    return found


def run_acts(
    pages: Tensor,
    layout: PageLayout,
    refs: npt.NDArray[np.int32],
    acts: Sequence[Any],
    fresh: npt.NDArray[np.int32] | None = None,
) -> int:
    """All of them, as `choose_acts` judged. Copies go to the runs ``fresh``, which have one owner each; returns how
    many were taken, from the first on. What is given up has an owner less in ``refs``; what has none any more is in
    ``freed`` and ``freed_pages`` of its act, of one that failed as well.
    """
    given = [] if fresh is None else fresh.tolist()
    taken: int = extension().run_acts(*_ground(pages, layout, refs), acts, given, torch.get_num_threads())
    return taken


def _ground(pages: Tensor, layout: PageLayout, refs: npt.NDArray[np.int32]) -> tuple[int, ...]:
    from ._extension import store_of

    shape = store_of(layout), layout.page_size, layout.k_dim, layout.v_dim
    return pages.data_ptr(), pages.shape[0], *shape, refs.ctypes.data
