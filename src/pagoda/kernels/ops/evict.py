"""An act of an eviction, all heads of a sequence in one call: who stays is chosen, and those that stay move up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout
from .close_gaps import reference as close_gaps
from .close_rows import reference as close_rows
from .keep_best import reference as keep_best


def evict(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    lens: Tensor,
    budgets: Tensor,
    num_slots: int,
    left: Tensor,
    *,
    scores: Tensor | None = None,
    sinks: int = 0,
    recent: int = 0,
    least: float = -math.inf,
    pool: int = 1,
    values: Sequence[Tensor] = (),
) -> None:
    """``keep_best`` of each row, then ``close_gaps`` of its pages and ``close_rows`` of ``values``. ``left`` int32
    ``[R]`` becomes how many slots stayed.

    rows int32 ``[R, W]`` page ids, no page twice; lens and budgets int64, R numbers of at most ``num_slots``; scores
    float32 ``[L, H, num_slots]`` with ``L * H == R`` (None: all are equal); values float32 ``[L, H, C]``, contiguous.
    """
    dtypes, code = (pages.dtype, *(() if scores is None else (scores.dtype,))), layout.codec_name
    key = (dtypes, code, pages.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(
        key, Needs(pages.device.type, dtypes[:1], options=frozenset({f"codec_{code}"} if code else ()))
    )
    run(
        pages, layout, rows, lens, budgets, num_slots, left,
        scores=scores, sinks=sinks, recent=recent, least=least, pool=pool, values=values,
    )  # fmt: skip


def reference(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    lens: Tensor,
    budgets: Tensor,
    num_slots: int,
    left: Tensor,
    *,
    scores: Tensor | None = None,
    sinks: int = 0,
    recent: int = 0,
    least: float = -math.inf,
    pool: int = 1,
    values: Sequence[Tensor] = (),
) -> None:
    if scores is None:
        scores = torch.zeros(len(rows), num_slots, device=pages.device)
    keep = keep_best(
        scores.reshape(len(rows), num_slots), lens.reshape(-1), budgets.reshape(-1), sinks=sinks, recent=recent,
        least=least, pool=pool,
    )  # fmt: skip
    close_gaps(pages, layout, rows, keep)
    for one in values:
        close_rows(one.flatten(0, 1), keep)
    left.copy_(keep.sum(-1))


_OP = Op("evict", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(
    make: Make, lens: list[int], budgets: list[int], dims: tuple[int, int] = (16, 16), scored: bool = True,
    **options: object,
) -> dict[str, object]:  # fmt: skip
    layout, slots, heads = PageLayout(4, *dims, make.dtype), max(lens), 2
    width, layers = -(-slots // 4) + 1, len(lens) // heads
    wider = make.normal(layers, heads, slots + 5, dtype=torch.float32)  # as it is remembered: with room at the end
    return {
        "pages": make.pages(len(lens) * width, layout),
        "layout": layout,
        "rows": make.permutation(len(lens) * width).view(-1, width).to(make.device),
        "lens": make.ints(lens, torch.int64),
        "budgets": make.ints(budgets, torch.int64),
        "num_slots": slots,
        "left": make.ints([-1] * len(lens)),
        "scores": wider[..., :slots] if scored else None,
        "values": torch.stack([wider, -wider]),
        **options,
    }


_WRITES = ("pages", "values", "left")
CASES = [
    Case("heads", lambda make: _case(make, [30, 30, 30, 30], [12, 12, 12, 12], recent=4), _WRITES),
    Case("uneven", lambda make: _case(make, [30, 7, 0, 29], [9, 9, 9, 40], sinks=2, least=0.0), _WRITES),
    Case("neighbours", lambda make: _case(make, [30, 30], [8, 8], sinks=3, recent=3, pool=5), _WRITES),
    Case("no scores", lambda make: _case(make, [21, 30], [10, 40], scored=False, sinks=3, recent=7), _WRITES),
    Case("latent", lambda make: _case(make, [30, 18], [12, 12], (20, 0)), _WRITES),
]
