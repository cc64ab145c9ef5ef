"""Copies whole pages: copy-on-write, and moves of a pool that shrinks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op
from ..layout import PageLayout


def copy_pages(pages: Tensor, src: Tensor, dst: Tensor) -> None:
    """Page ``dst[i]`` becomes what page ``src[i]`` was before the call. src, dst ``[N]`` int; targets must differ."""
    key = (pages.dtype, pages.device.type, src.dtype)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(pages, src))
    run(pages, src, dst)


def _needs(pages: Tensor, src: Tensor) -> Needs:
    options = frozenset({f"ids_{str(src.dtype).removeprefix('torch.')}"})
    return Needs(pages.device.type, (pages.dtype,), options=options)


def reference(pages: Tensor, src: Tensor, dst: Tensor) -> None:
    pages.index_copy_(0, dst.long(), pages.index_select(0, src))


_OP = Op("copy_pages", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(make: Make, src: list[int], dst: list[int]) -> dict[str, object]:
    layout = PageLayout(4, 16, 16, make.dtype)
    return {"pages": make.pages(12, layout), "src": make.ints(src), "dst": make.ints(dst)}


CASES = [
    Case("copies", lambda make: _case(make, [3, 3, 0], [5, 6, 7]), ("pages",)),
    Case("chain", lambda make: _case(make, [0, 1, 2], [1, 2, 0]), ("pages",)),
    Case("nothing", lambda make: _case(make, [], []), ("pages",)),
]
