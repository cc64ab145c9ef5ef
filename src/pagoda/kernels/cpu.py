"""The C++ implementations (``csrc/``) behind the ops' signatures: tensors become addresses here, and nowhere else.

Importing registers them. Without the extension the import fails with the reason, which `dispatch.available` shows.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from . import dispatch
from .dispatch import Features
from .layout import PageLayout
from .ops._table import LayerTable

try:
    _cpu = importlib.import_module("pagoda.kernels._cpu")
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, isa: str = "") -> Tensor:
    """As `ops.linear` for bfloat16 and up to eight tokens; ``isa`` fixes the instruction set (for tests)."""
    if weight.stride(1) != 1:  # a transposed view: torch's GEMM takes it as it is
        return torch.nn.functional.linear(x, weight, bias)
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    bias = None if bias is None else bias.contiguous()
    out = torch.empty(tokens.shape[0], weight.shape[0], dtype=x.dtype)
    _cpu.linear(
        tokens.data_ptr(), weight.data_ptr(), weight.stride(0), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
        tokens.shape[0], weight.shape[1], weight.shape[0], torch.get_num_threads(), isa,
    )  # fmt: skip
    return out.view(*x.shape[:-1], weight.shape[0])


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
# Against torch's own on one busy Zen 4 core, us for 1 / 2 / 4 / 8 tokens:
#   [4864, 896]    735 /   731 /   864 /   956    torch   957 /   963 /  1031 /  1199
#   [896, 4864]    415 /   478 /   611 /   838    torch   811 /   741 /   811 /   977
#   [151936, 896]  23515 / 23862 / 27903 / 31052  torch 30062 / 29983 / 33491 / 37528
# With AVX2 alone it was slower than torch, so there it is not offered.
if best_isa().startswith("avx512"):
    dispatch.register(
        "linear", "cpu", linear,
        Features(CPU, frozenset({torch.bfloat16}), frozenset({"bias", "few_tokens"}), same_dtype=True),
    )  # fmt: skip
