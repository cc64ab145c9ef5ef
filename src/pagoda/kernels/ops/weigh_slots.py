"""Weighted sums of a row's slots: what merges several into one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout
from .read_slots import reference as read_slots


def weigh_slots(
    pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """K float32 ``[R, k_dim]`` and V alike (no columns for latent pages): the sums of each row's slots from ``first``
    int64 ``[R]`` on, times ``weights`` float32 ``[R, count]``. rows int32 ``[R, W]``: page ids, as far as that.
    """
    code = layout.codec_name
    key = (pages.dtype, code, pages.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(
        key, Needs(pages.device.type, (pages.dtype,), options=frozenset({f"codec_{code}"} if code else ()))
    )
    found: tuple[Tensor, Tensor] = run(pages, layout, rows, first, weights)
    return found


def reference(pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    k, v = read_slots(pages, layout, rows, first, weights.shape[1])
    return (weights[:, None] @ k)[:, 0], (weights[:, None] @ v)[:, 0]


_OP = Op("weigh_slots", reference)
TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-5, 1e-5), torch.float16: (1e-5, 1e-5)}


def _case(make: Make, first: list[int], count: int, dims: tuple[int, int]) -> dict[str, object]:
    layout, width = PageLayout(4, *dims, make.dtype), -(-(max(first) + count) // 4) + 1
    return {
        "pages": make.pages(len(first) * width, layout), "layout": layout,
        "rows": make.permutation(len(first) * width).view(-1, width).to(make.device),
        "first": make.ints(first, torch.int64),
        "weights": make.normal(len(first), count, dtype=torch.float32).softmax(-1),
    }  # fmt: skip


CASES = [
    Case("rows", lambda make: _case(make, [0, 7, 13], 9, (16, 8))),
    Case("latent", lambda make: _case(make, [2, 1], 6, (20, 0))),
    Case("one slot", lambda make: _case(make, [2], 1, (16, 16))),
]
