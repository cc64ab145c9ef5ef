"""Hashes of keys that lie in pages: which side of some planes they lie on, as whole numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout
from .read_slots import reference as read_slots

MOST_BITS = 24
"""Whole numbers up to there are exact in float32."""


def hash_slots(
    pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, count: int, planes: Tensor, hashes: Tensor
) -> None:
    """``sign_hashes`` of the keys that ``read_slots`` would give, with ``planes`` float32 ``[k_dim, bits]``, go to
    ``hashes`` float32 ``[L, H, N]`` (R rows in all, equally far apart), of each row the ``count`` from ``first`` int64
    ``[R]`` on.
    """
    code = layout.codec_name
    key = (pages.dtype, code, pages.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(
        key, Needs(pages.device.type, (pages.dtype,), options=frozenset({f"codec_{code}"} if code else ()))
    )
    run(pages, layout, rows, first, count, planes, hashes)


def sign_hashes(x: Tensor, planes: Tensor) -> Tensor:
    """float32 ``[...]``, whole: bit b is set where ``x`` float32 ``[..., D]`` times column b of ``planes`` float32
    ``[D, bits]`` is above 0; at most MOST_BITS bits.
    """
    bits = torch.arange(planes.shape[1], device=x.device)
    return (x @ planes > 0).float() @ (2.0**bits)  # exact: a sum of powers of two


def reference(
    pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, count: int, planes: Tensor, hashes: Tensor
) -> None:
    found = sign_hashes(read_slots(pages, layout, rows, first, count, values=False)[0], planes)
    at = first[:, None] + torch.arange(count, device=first.device)
    hashes.view(len(rows), -1).scatter_(1, at, found)


_OP = Op("hash_slots", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(make: Make, first: list[int], count: int, dims: tuple[int, int], bits: int = 16) -> dict[str, object]:
    layout, slots = PageLayout(4, *dims, make.dtype), max(first) + count
    width = -(-slots // 4) + 1
    return {
        "pages": make.pages(len(first) * width, layout), "layout": layout,
        "rows": make.permutation(len(first) * width).view(-1, width).to(make.device),
        "first": make.ints(first, torch.int64), "count": count,
        "planes": make.normal(dims[0], bits, dtype=torch.float32),
        "hashes": make.normal(1, len(first), slots + 3, dtype=torch.float32),
    }  # fmt: skip


_WRITES = ("hashes",)
CASES = [
    Case("rows", lambda make: _case(make, [0, 7, 13], 9, (16, 8)), _WRITES),
    Case("bits of several registers", lambda make: _case(make, [3, 4], 5, (24, 8), bits=21), _WRITES),
    Case("most bits, many columns", lambda make: _case(make, [3, 4], 7, (64, 8), bits=MOST_BITS), _WRITES),
    Case("one bit", lambda make: _case(make, [0, 2], 2, (6, 2), bits=1), _WRITES),
    Case("latent", lambda make: _case(make, [2, 1], 6, (20, 0), bits=3), _WRITES),
    Case("nothing", lambda make: _case(make, [2, 1], 0, (16, 16)), _WRITES),
]
