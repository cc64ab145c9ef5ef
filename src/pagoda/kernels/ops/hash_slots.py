"""Hashes of keys that lie in pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout
from .read_slots import reference as read_slots
from .sign_hashes import reference as sign_hashes


def hash_slots(pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, count: int, planes: Tensor) -> Tensor:
    """``sign_hashes`` of the keys that ``read_slots`` would give: float32 ``[R, count]``, planes ``[k_dim, bits]``."""
    code = layout.codec_name
    key = (pages.dtype, code, pages.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(
        key, Needs(pages.device.type, (pages.dtype,), options=frozenset({f"codec_{code}"} if code else ()))
    )
    hashes: Tensor = run(pages, layout, rows, first, count, planes)
    return hashes


def reference(pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, count: int, planes: Tensor) -> Tensor:
    return sign_hashes(read_slots(pages, layout, rows, first, count, values=False)[0], planes)


_OP = Op("hash_slots", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(make: Make, first: list[int], count: int, dims: tuple[int, int], bits: int = 16) -> dict[str, object]:
    layout, width = PageLayout(4, *dims, make.dtype), -(-(max(first) + count) // 4) + 1
    return {
        "pages": make.pages(len(first) * width, layout), "layout": layout,
        "rows": make.permutation(len(first) * width).view(-1, width).to(make.device),
        "first": make.ints(first, torch.int64), "count": count,
        "planes": make.normal(dims[0], bits, dtype=torch.float32),
    }  # fmt: skip


CASES = [
    Case("rows", lambda make: _case(make, [0, 7, 13], 9, (16, 8))),
    Case("bits of several registers", lambda make: _case(make, [3, 4], 5, (24, 8), bits=21)),
    Case("latent", lambda make: _case(make, [2, 1], 6, (20, 0), bits=3)),
    Case("nothing", lambda make: _case(make, [2, 1], 0, (16, 16))),
]
