"""The C++ bodies that write, move and copy KV."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CODECS, CPU, DTYPES, _cpu, head_rows, store_of
from .dispatch import Features
from .layout import PageLayout

IDS = frozenset({"ids_int32", "ids_int64"})


def kv_write(
    k: Tensor, v: Tensor | None, pages: Tensor, layout: PageLayout, page_ids: Tensor, slots: Tensor, isa: str = ""
) -> None:
    """As `ops.kv_write`; ``isa`` fixes the instruction set (for tests)."""
    k, width = head_rows(k), k.element_size()
    v = k if v is None else head_rows(v)
    page_ids, slots = page_ids.contiguous(), slots.to(page_ids.dtype).contiguous()
    _cpu.kv_write(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        k.data_ptr(), k.stride(0) * width, k.stride(1) * width,
        v.data_ptr(), v.stride(0) * width, v.stride(1) * width, DTYPES[k.dtype],
        page_ids.data_ptr(), slots.data_ptr(), k.shape[0], k.shape[1], page_ids.dtype == torch.int64,
        torch.get_num_threads(), isa,
    )  # fmt: skip


def kv_compact(
    pages: Tensor, layout: PageLayout, src_pages: Tensor, src_slots: Tensor, dst_pages: Tensor, dst_slots: Tensor
) -> None:
    width, dtype = pages.element_size(), src_pages.dtype
    ids = [x.to(dtype).contiguous() for x in (src_pages, src_slots, dst_pages, dst_slots)]
    planes = [(at * width, elems * width) for at, elems in layout.planes]
    _cpu.kv_compact(
        pages.data_ptr(), pages.shape[0], layout.page_bytes, layout.page_size, planes,
        *(x.data_ptr() for x in ids), len(src_pages), dtype == torch.int64,
    )  # fmt: skip


def copy_pages(pages: Tensor, src: Tensor, dst: Tensor) -> None:
    src, dst = src.contiguous(), dst.to(src.dtype).contiguous()
    page_bytes = pages.shape[1] * pages.element_size()
    _cpu.copy_pages(
        pages.data_ptr(), pages.shape[0], page_bytes, src.data_ptr(), dst.data_ptr(), len(src),
        src.dtype == torch.int64, torch.get_num_threads(),
    )  # fmt: skip


dispatch.register("kv_write", "cpu", kv_write, Features(CPU, frozenset(DTYPES), IDS | CODECS | {"latent"}))
dispatch.register("kv_compact", "cpu", kv_compact, Features(CPU, options=IDS))
dispatch.register("copy_pages", "cpu", copy_pages, Features(CPU, options=IDS))
