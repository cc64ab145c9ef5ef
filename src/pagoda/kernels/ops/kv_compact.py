"""Moves single slots between pages: how a head closes the gaps that eviction left."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
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
    for plane in layout.plane_views(pages):
        plane.index_put_(target, plane[source])


_OP = Op("kv_compact", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(make: Make, src: torch.Tensor, dst: torch.Tensor, k_dim: int = 16, v_dim: int = 16) -> dict[str, object]:
    """Moves between flat slot numbers (page * page_size + slot)."""
    layout = PageLayout(4, k_dim, v_dim, make.dtype)
    src, dst = src.to(make.device), dst.to(make.device)
    return {
        "pages": make.pages(12, layout),
        "layout": layout,
        "src_pages": src // 4,
        "src_slots": src % 4,
        "dst_pages": dst // 4,
        "dst_slots": dst % 4,
    }


def _close_gaps(make: Make, v_dim: int = 16) -> dict[str, object]:
    """A head of 30 slots keeps every other one and the last eight, in order."""
    kept = torch.tensor([*range(0, 22, 2), *range(22, 30)], dtype=torch.int32)
    return _case(make, kept, torch.arange(len(kept), dtype=torch.int32), v_dim=v_dim)


def _rotate(make: Make) -> dict[str, object]:
    """Every slot is both read and written: only reading everything first is right."""
    slots = torch.arange(48, dtype=torch.int32)
    return _case(make, slots, slots.roll(1))


CASES = [
    Case("close gaps", _close_gaps, ("pages",)),
    Case("close gaps, latent", lambda make: _close_gaps(make, v_dim=0), ("pages",)),
    Case("close gaps, v narrower", lambda make: _close_gaps(make, v_dim=8), ("pages",)),
    Case("rotate", _rotate, ("pages",)),
    Case("reverse", lambda make: _case(make, make.ints(range(20)), make.ints(range(19, -1, -1))), ("pages",)),
    Case("nothing", lambda make: _case(make, make.ints([]), make.ints([])), ("pages",)),
]
