"""Moves single slots between pages: how a head closes the gaps that eviction left."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import Needs, Op
from ..layout import PageLayout


def kv_compact(
    pages: Tensor, layout: PageLayout, src_pages: Tensor, src_slots: Tensor, dst_pages: Tensor, dst_slots: Tensor
) -> None:
    """For every i, slot ``dst_slots[i]`` of page ``dst_pages[i]`` becomes what ``src_slots[i]`` of ``src_pages[i]`` was
    before the call. All ``[N]`` int. Sources may be targets of other moves (all reads come first); targets must differ.
    """
    key = (pages.dtype, pages.device.type, src_pages.dtype)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(pages, src_pages))
    run(pages, layout, src_pages, src_slots, dst_pages, dst_slots)


def _needs(pages: Tensor, src_pages: Tensor) -> Needs:
    options = frozenset({f"ids_{str(src_pages.dtype).removeprefix('torch.')}"})
    return Needs(pages.device.type, (pages.dtype,), options=options)


def reference(
    pages: Tensor, layout: PageLayout, src_pages: Tensor, src_slots: Tensor, dst_pages: Tensor, dst_slots: Tensor
) -> None:
    source, target = (src_pages.long(), src_slots.long()), (dst_pages.long(), dst_slots.long())
    blocks = [layout.k(pages)] + ([layout.v(pages)] if layout.v_dim else [])
    for block in blocks:
        block.index_put_(target, block[source])


_OP = Op("kv_compact", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}
