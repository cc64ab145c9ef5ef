"""The C++ implementations (``csrc/``) behind the ops' signatures: tensors become addresses here, and nowhere else.

Importing registers them. Without the extension the import fails with the reason, which `dispatch.available` shows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from .dispatch import Features
from .layout import PageLayout
from .ops._table import LayerTable

try:
    from . import _cpu
except ImportError as error:
    raise ImportError(f"the C++ extension was not built when Pagoda was installed ({error})") from None

CPU = frozenset({"cpu"})
IDS = frozenset({"ids_int32", "ids_int64"})


def cpu_features() -> dict[str, bool]:
    """Instruction sets of this machine that the operating system lets us use (cpuid, xgetbv)."""
    features: dict[str, bool] = _cpu.cpu_features()
    return features


def best_isa() -> str:
    """The instruction set that the kernels run with here: avx512bf16, avx512, avx2 or base."""
    isa: str = _cpu.best_isa()
    return isa


def kv_write(k: Tensor, v: Tensor | None, pages: Tensor, layout: PageLayout, page_ids: Tensor, slots: Tensor) -> None:
    k, width = _rows(k), k.element_size()
    v = k if v is None else _rows(v)
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


def paged_attention(
    q: Tensor,
    pages: Tensor,
    layout: PageLayout,
    table: LayerTable,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    v_dim: int | None = None,
    prob_sums: Tensor | None = None,
    isa: str = "",
) -> Tensor:
    """As `ops.paged_attention`, without ``prob_sums``; ``isa`` fixes the instruction set (for tests)."""
    q, columns = _rows(q), layout.v_dim if v_dim is None else v_dim
    num_seqs, num_kv_heads = table.kv_lens.shape
    out = torch.empty(q.shape[0], q.shape[1], columns, dtype=q.dtype)
    if out.shape[0] != table.q_starts_cpu[-1]:
        out.zero_()  # tokens of no sequence
    rows, row_of, offset = table.rows.contiguous(), table.row_of.contiguous(), table.offset.contiguous()
    kv_lens, q_starts = table.kv_lens.contiguous(), table.q_starts.contiguous()
    wide_sinks = None if sinks is None else sinks.float().contiguous()  # named, so that they outlive the call
    wide_slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()
    _cpu.paged_attention(
        q.data_ptr(), q.stride(0), q.stride(1), out.data_ptr(), q.dtype == torch.bfloat16,
        pages.data_ptr(), pages.shape[0], layout.page_size, layout.k_dim, layout.v_dim, columns,
        rows.data_ptr(), rows.shape[0], rows.shape[1], row_of.data_ptr(), offset.data_ptr(), kv_lens.data_ptr(),
        q_starts.data_ptr(), num_seqs, q.shape[0], q.shape[1], num_kv_heads, scale, soft_cap, window,
        0 if wide_sinks is None else wide_sinks.data_ptr(), 0 if wide_slopes is None else wide_slopes.data_ptr(),
        torch.get_num_threads(), isa,
    )  # fmt: skip
    return out


def _rows(x: Tensor) -> Tensor:
    """x ``[tokens, heads, dim]`` with a contiguous last dimension; slices of a fused projection pass as they are."""
    return x if x.stride(2) == 1 else x.contiguous()


dispatch.register(
    "kv_write", "cpu", kv_write,
    Features(CPU, frozenset({torch.float32, torch.bfloat16, torch.float16}), IDS | {"latent"}, same_dtype=True),
)  # fmt: skip
dispatch.register("kv_compact", "cpu", kv_compact, Features(CPU, options=IDS))
dispatch.register("copy_pages", "cpu", copy_pages, Features(CPU, options=IDS))
dispatch.register(
    "paged_attention", "cpu", paged_attention,
    Features(
        CPU, frozenset({torch.float32, torch.bfloat16}), frozenset({"window", "soft_cap", "sinks", "alibi", "latent"}),
        same_dtype=True, multiple_of=16,
    ),
)  # fmt: skip
