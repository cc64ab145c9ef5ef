"""The C++ bodies that move slots and pages of KV."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu, head_rows
from .dispatch import Features
from .layout import PageLayout

IDS = frozenset({"ids_int32", "ids_int64"})


def kv_write(k: Tensor, v: Tensor | None, pages: Tensor, layout: PageLayout, page_ids: Tensor, slots: Tensor) -> None:
    k, width = head_rows(k), k.element_size()
    v = k if v is None else head_rows(v)
    page_ids, slots = page_ids.contiguous(), slots.to(page_ids.dtype).contiguous()
    _cpu.kv_write(
        pages.data_ptr(), pages.shape[0], layout.page_size, layout.k_dim * width, layout.v_dim * width,
        k.data_ptr(), k.stride(0) * width, k.stride(1) * width,
        v.data_ptr(), v.stride(0) * width, v.stride(1) * width,
        page_ids.data_ptr(), slots.data_ptr(), k.shape[0], k.shape[1], page_ids.dtype == torch.int64,
    )  # fmt: skip


def kv_compact(
    pages: Tensor, layout: PageLayout, src_pages: Tensor, src_slots: Tensor, dst_pages: Tensor, dst_slots: Tensor
) -> None:
    width, dtype = pages.element_size(), src_pages.dtype
    ids = [x.to(dtype).contiguous() for x in (src_pages, src_slots, dst_pages, dst_slots)]
    _cpu.kv_compact(
        pages.data_ptr(), pages.shape[0], layout.page_size, layout.k_dim * width, layout.v_dim * width,
        *(x.data_ptr() for x in ids), len(src_pages), dtype == torch.int64,
    )  # fmt: skip


def copy_pages(pages: Tensor, src: Tensor, dst: Tensor) -> None:
    src, dst = src.contiguous(), dst.to(src.dtype).contiguous()
    page_bytes = pages.shape[1] * pages.element_size()
    wide = src.dtype == torch.int64
    _cpu.copy_pages(pages.data_ptr(), pages.shape[0], page_bytes, src.data_ptr(), dst.data_ptr(), len(src), wide)


dispatch.register(
    "kv_write", "cpu", kv_write,
    Features(CPU, frozenset({torch.float32, torch.bfloat16, torch.float16}), IDS | {"latent"}, same_dtype=True),
)  # fmt: skip
dispatch.register("kv_compact", "cpu", kv_compact, Features(CPU, options=IDS))
dispatch.register("copy_pages", "cpu", copy_pages, Features(CPU, options=IDS))
