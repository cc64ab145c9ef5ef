"""Writes the K and V of a step's new tokens into their slots."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op, one_device
from ..layout import PageLayout


def kv_write(k: Tensor, v: Tensor | None, pages: Tensor, layout: PageLayout, page_ids: Tensor, slots: Tensor) -> None:
    """Slot ``slots[t, h]`` of page ``page_ids[t, h]`` becomes ``k[t, h]``, ``v[t, h]``, rounded to the pages' dtype or
    encoded by their codec.

    k ``[T, Hkv, k_dim]``, v ``[T, Hkv, v_dim]`` (None for latent pages), page_ids and slots ``[T, Hkv]`` int, slots
    within the page. Targets must differ from each other; shared pages must have been copied before. Raises ConfigError
    for tensors on several devices.
    """
    devices = (pages.device.type, k.device.type, page_ids.device.type)
    key = (k.dtype, pages.dtype, layout.codec_name, devices, v is None, page_ids.dtype)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(k, v, pages, layout, page_ids))
    run(k, v, pages, layout, page_ids, slots)


def _needs(k: Tensor, v: Tensor | None, pages: Tensor, layout: PageLayout, page_ids: Tensor) -> Needs:
    options = frozenset({"latent"} if v is None else ()) | {f"ids_{str(page_ids.dtype).removeprefix('torch.')}"}
    device = one_device("kv_write", k=k, pages=pages, page_ids=page_ids)
    if layout.codec is not None:
        return Needs(device, (k.dtype,), options=options | {f"codec_{layout.codec.name}"})
    return Needs(device, (k.dtype, pages.dtype), options=options)


def reference(k: Tensor, v: Tensor | None, pages: Tensor, layout: PageLayout, page_ids: Tensor, slots: Tensor) -> None:
    if v is not None and layout.k_dim == layout.v_dim and layout.codec is None:
        # Pages as rows of one vector: K of (page, slot) is row 2 * page * page_size + slot, V is page_size further on.
        rows = pages.view(-1, layout.k_dim)
        index = (page_ids.long() * (2 * layout.page_size) + slots).reshape(-1)
        rows.index_copy_(0, index, k.reshape(-1, layout.k_dim).to(pages.dtype))
        rows.index_copy_(0, index + layout.page_size, v.reshape(-1, layout.v_dim).to(pages.dtype))
        return
    where = (page_ids.long(), slots.long())
    if layout.codec is not None:
        rows = [layout.codec.encode(x.float()) for x in (k, v) if x is not None]
        values = [codes for codes, _ in rows] + [scales for _, scales in rows]
        for plane, value in zip(layout.plane_views(pages), values, strict=True):
            plane.index_put_(where, value)
        return
    layout.k(pages).index_put_(where, k.to(pages.dtype))
    if v is not None:
        layout.v(pages).index_put_(where, v.to(pages.dtype))


_OP = Op("kv_write", reference)
TOLERANCE = {torch.float32: (0.0, 0.0), torch.bfloat16: (0.0, 0.0), torch.float16: (0.0, 0.0)}


def _case(make: Make, tokens: int, k_dim: int, v_dim: int, pages_dtype: torch.dtype | None = None) -> dict[str, object]:
    heads, layout = 2, PageLayout(4, k_dim, v_dim, pages_dtype or make.dtype)
    places = make.permutation(12 * layout.page_size)[: tokens * heads].view(tokens, heads).to(make.device)
    return {
        "k": make.normal(tokens, heads, k_dim),
        "v": make.normal(tokens, heads, v_dim, scale=2.0) if v_dim else None,
        "pages": make.pages(12, layout),
        "layout": layout,
        "page_ids": places // layout.page_size,
        "slots": places % layout.page_size,
    }


CASES = [
    Case("one token", lambda make: _case(make, 1, 16, 16), ("pages",)),
    Case("tokens", lambda make: _case(make, 9, 16, 16), ("pages",)),
    Case("v narrower", lambda make: _case(make, 9, 24, 16), ("pages",)),
    Case("latent", lambda make: _case(make, 9, 20, 0), ("pages",)),
    Case("bfloat16 pages", lambda make: _case(make, 9, 16, 16, torch.bfloat16), ("pages",)),
    Case("nothing", lambda make: _case(make, 0, 16, 16), ("pages",)),
]
