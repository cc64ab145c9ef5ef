"""Slots of pages as plain numbers: what policies look at."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout
from ._paged import gather


def read_slots(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    first: Tensor,
    count: int,
    *,
    keys: bool = True,
    values: bool = True,
) -> tuple[Tensor, Tensor]:
    """K float32 ``[R, count, k_dim]`` and V alike of ``count`` slots of each row from ``first`` int64 ``[R]`` on; what
    is not asked for has no columns, nor has V of latent pages. rows int32 ``[R, W]``: page ids, as far as that.
    """
    code = layout.codec_name
    key = (pages.dtype, code, pages.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(
        key, Needs(pages.device.type, (pages.dtype,), options=frozenset({f"codec_{code}"} if code else ()))
    )
    found: tuple[Tensor, Tensor] = run(pages, layout, rows, first, count, keys=keys, values=values)
    return found


def reference(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    first: Tensor,
    count: int,
    *,
    keys: bool = True,
    values: bool = True,
) -> tuple[Tensor, Tensor]:
    k, v = gather(pages, layout, rows, torch.float32)
    at = first[:, None] + torch.arange(count, device=pages.device)
    row = torch.arange(len(rows), device=pages.device)[:, None]
    k = k[row, at]
    v = k[..., :0] if v is None else v[row, at]
    return k if keys else k[..., :0], v if values else v[..., :0]


_OP = Op("read_slots", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(make: Make, first: list[int], count: int, dims: tuple[int, int], **options: bool) -> dict[str, object]:
    layout, width = PageLayout(4, *dims, make.dtype), -(-(max(first) + count) // 4) + 1
    return {
        "pages": make.pages(len(first) * width, layout), "layout": layout,
        "rows": make.permutation(len(first) * width).view(-1, width).to(make.device),
        "first": make.ints(first, torch.int64), "count": count, **options,
    }  # fmt: skip


CASES = [
    Case("rows", lambda make: _case(make, [0, 7, 13], 9, (16, 8))),
    Case("keys", lambda make: _case(make, [3, 4], 5, (16, 8), values=False)),
    Case("values", lambda make: _case(make, [3, 4], 5, (16, 8), keys=False)),
    Case("latent", lambda make: _case(make, [2, 1], 6, (20, 0))),
    Case("nothing", lambda make: _case(make, [2, 1], 0, (16, 16))),
]
