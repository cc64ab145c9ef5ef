"""Copies whole pages: copy-on-write, and moves of a pool that shrinks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Needs, Op


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
