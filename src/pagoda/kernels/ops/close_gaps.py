"""Heads of one sequence move up after an eviction, all in one call: moves that stay within a head's own pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout
from . import kv_compact as moves


def close_gaps(pages: Tensor, layout: PageLayout, rows: Tensor, keep: Tensor) -> None:
    """Slots that stay move to 0, 1, 2 … of their row, in order.

    rows int32 ``[R, W]``: page ids of each row, slot i in column ``i // page_size``; keep bool ``[R, N]``: which of its
    first N slots stay. No page may be in two rows.
    """
    key = (pages.dtype, pages.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(pages.device.type, (pages.dtype,)))
    run(pages, layout, rows, keep)


def reference(pages: Tensor, layout: PageLayout, rows: Tensor, keep: Tensor) -> None:
    row, slot = keep.nonzero(as_tuple=True)
    target = (keep.long().cumsum(-1) - 1)[row, slot]
    size = layout.page_size
    moves.reference(pages, layout, rows[row, slot // size], slot % size, rows[row, target // size], target % size)


_OP = Op("close_gaps", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(make: Make, kept: list[list[int]], slots: int, dims: tuple[int, int] = (16, 16)) -> dict[str, object]:
    layout, width = PageLayout(4, *dims, make.dtype), -(-slots // 4) + 1
    keep = torch.zeros(len(kept), slots, dtype=torch.bool)
    for row, those in enumerate(kept):
        keep[row, those] = True
    rows = make.permutation(len(kept) * width).view(-1, width)
    return {
        "pages": make.pages(rows.numel(), layout), "layout": layout,
        "rows": rows.to(make.device), "keep": keep.to(make.device),
    }  # fmt: skip


_KEPT = [[*range(0, 22, 2), *range(22, 30)], [*range(4), *range(13, 28)], [29], [], list(range(30))]
CASES = [
    Case("heads", lambda make: _case(make, _KEPT, 30), ("pages",)),
    Case("heads, latent", lambda make: _case(make, _KEPT, 30, (20, 0)), ("pages",)),
    Case("heads, v narrower", lambda make: _case(make, _KEPT, 30, (16, 8)), ("pages",)),
    Case("nothing", lambda make: _case(make, [[]], 0), ("pages",)),
]
