"""The C++ bodies of what an eviction does to a sequence's heads (csrc/slots.hpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch
from ._extension import CODECS, CPU, DTYPES, _cpu, store_of
from .dispatch import Features
from .layout import PageLayout
from .ops.add_sums import Target, Targets
from .ops.hash_slots import MOST_BITS


def keep_best(
    scores: Tensor,
    lens: Tensor,
    budgets: Tensor,
    *,
    sinks: int = 0,
    recent: int = 0,
    least: float = -math.inf,
    pool: int = 1,
) -> Tensor:
    keep = torch.empty(scores.shape, dtype=torch.bool)
    scores, lens, budgets = scores.contiguous(), lens.contiguous(), budgets.contiguous()
    slots = scores.shape[-1]
    _cpu.keep_best(
        scores.data_ptr(), slots, lens.data_ptr(), budgets.data_ptr(), lens.numel(), slots, sinks, recent, least, pool,
        keep.data_ptr(),
    )  # fmt: skip
    return keep


def evict(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    lens: Tensor,
    budgets: Tensor,
    num_slots: int,
    left: Tensor,
    *,
    scores: Tensor | None = None,
    sinks: int = 0,
    recent: int = 0,
    least: float = -math.inf,
    pool: int = 1,
    values: Sequence[Tensor] = (),
) -> None:
    stride = num_slots
    assert left.is_contiguous()
    if scores is not None:
        assert scores.shape[-1] == num_slots
        scores, stride = _rows(scores)
    assert all(one.is_contiguous() and one.shape[-1] >= num_slots for one in values)
    rows, lens, budgets = rows.contiguous(), lens.contiguous(), budgets.contiguous()
    _cpu.evict(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        rows.data_ptr(), rows.shape[1], 0 if scores is None else scores.data_ptr(), stride,
        lens.data_ptr(), budgets.data_ptr(), len(rows), num_slots, sinks, recent, least, pool,
        [(one.data_ptr(), one.shape[-1]) for one in values], left.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """[L, H, N] whose rows are equally far apart, and how far."""
    return (x, x.stride(1)) if _is_even(x) else (x.contiguous(), x.shape[2])


def _is_even(x: Tensor) -> bool:
    stride = x.stride()
    return stride[2] == 1 and stride[0] == x.shape[1] * stride[1]


def read_slots(
    pages: Tensor,
    layout: PageLayout,
    rows: Tensor,
    first: Tensor,
    count: int,
    *,
    keys: bool = True,
    values: bool = True,
) -> tuple[Tensor, Tensor]:
    k = torch.empty(len(rows), count, layout.k_dim if keys else 0)
    v = torch.empty(len(rows), count, layout.v_dim if values else 0)
    rows, first = rows.contiguous(), first.contiguous()
    _cpu.read_slots(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        rows.data_ptr(), *rows.shape, first.data_ptr(), count,
        k.data_ptr() if k.numel() else 0, v.data_ptr() if v.numel() else 0,
    )  # fmt: skip
    return k, v


def weigh_slots(
    pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    k, v = torch.empty(len(rows), layout.k_dim), torch.empty(len(rows), layout.v_dim)
    rows, first, weights = rows.contiguous(), first.contiguous(), weights.contiguous()
    _cpu.weigh_slots(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        rows.data_ptr(), *rows.shape, first.data_ptr(), weights.shape[1],
        k.data_ptr(), v.data_ptr() if layout.v_dim else 0, weights.data_ptr(),
    )  # fmt: skip
    return k, v


def hash_slots(
    pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, count: int, planes: Tensor, hashes: Tensor,
    isa: str = "",
) -> None:  # fmt: skip
    assert planes.shape[1] <= MOST_BITS
    assert _is_even(hashes), "rows of hashes that are not equally far apart"
    rows, first, planes = rows.contiguous(), first.contiguous(), planes.contiguous()
    _cpu.hash_slots(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        rows.data_ptr(), *rows.shape, first.data_ptr(), count, planes.data_ptr(), planes.shape[1],
        hashes.data_ptr(), hashes.stride(1), hashes.shape[2], isa,
    )  # fmt: skip


def hash_scores(hashes: Tensor, queries: Tensor, planes: Tensor, isa: str = "") -> Tensor:
    layers, heads, slots = hashes.shape
    dim, bits = planes.shape
    assert bits <= MOST_BITS
    scores, queries, planes = torch.empty(hashes.shape), queries.contiguous(), planes.contiguous()
    hashes, stride = _rows(hashes)
    _cpu.hash_scores(
        hashes.data_ptr(), stride, layers * heads, slots, queries.data_ptr(), queries.shape[1] // heads, dim,
        planes.data_ptr(), bits, scores.data_ptr(), isa,
    )  # fmt: skip
    return scores


def window_sums(
    pages: Tensor, layout: PageLayout, rows: Tensor, lens: Tensor, positions: Tensor, queries: Tensor, num_seen: int, *,
    scale: float, soft_cap: float = 0.0, isa: str = "",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    (layers, heads, slots), (_, window, num_q_heads, dim) = positions.shape, queries.shape
    assert len(rows) == layers * heads == lens.numel()
    assert (len(queries), dim) == (layers, layout.k_dim)
    received, wanted, largest = (torch.empty(positions.shape) for _ in range(3))
    rows, lens, positions = rows.contiguous(), lens.contiguous(), positions.contiguous()
    queries = queries.contiguous()
    _cpu.window_sums(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        rows.data_ptr(), *rows.shape, lens.data_ptr(), positions.data_ptr(), slots, heads,
        queries.data_ptr(), DTYPES[queries.dtype], window, num_q_heads // heads, num_seen, scale, soft_cap,
        received.data_ptr(), wanted.data_ptr(), largest.data_ptr(), torch.get_num_threads(), isa,
    )  # fmt: skip
    return received, wanted, largest


def close_gaps(pages: Tensor, layout: PageLayout, rows: Tensor, keep: Tensor) -> None:
    width = pages.element_size()
    planes = [(at * width, elems * width) for at, elems in layout.planes]
    rows, keep = rows.contiguous(), keep.contiguous()
    _cpu.close_gaps(
        pages.data_ptr(), pages.shape[0], layout.page_bytes, layout.page_size, planes,
        rows.data_ptr(), rows.shape[1], keep.data_ptr(), *keep.shape, torch.get_num_threads(),
    )  # fmt: skip


def close_rows(values: Tensor, keep: Tensor) -> None:
    assert values.stride(1) == 1
    assert values.shape[1] >= keep.shape[1]
    keep = keep.contiguous()
    _cpu.close_rows(values.data_ptr(), values.stride(0), values.shape[1], keep.data_ptr(), *keep.shape)


def add_sums(sums: Tensor, targets: Sequence[Tensor]) -> None:
    layers, seqs, heads, slots = sums.shape
    assert len(targets) == seqs
    to = targets if isinstance(targets, Targets) else Targets([Target.of(target) for target in targets])
    sums = sums.contiguous()
    _cpu.add_sums(sums.data_ptr(), layers, seqs, heads, slots, to.addresses.ctypes.data, to.widths.ctypes.data)


FLOATS = frozenset({torch.float32})
dispatch.register("keep_best", "cpu", keep_best, Features(CPU, FLOATS))
dispatch.register("evict", "cpu", evict, Features(CPU, frozenset({*DTYPES, torch.uint8}), CODECS))
dispatch.register("read_slots", "cpu", read_slots, Features(CPU, frozenset({*DTYPES, torch.uint8}), CODECS))
dispatch.register("weigh_slots", "cpu", weigh_slots, Features(CPU, frozenset({*DTYPES, torch.uint8}), CODECS))
dispatch.register("hash_slots", "cpu", hash_slots, Features(CPU, frozenset({*DTYPES, torch.uint8}), CODECS))
dispatch.register("hash_scores", "cpu", hash_scores, Features(CPU, FLOATS))
dispatch.register("window_sums", "cpu", window_sums, Features(CPU, frozenset({*DTYPES, torch.uint8}), CODECS))
dispatch.register("close_gaps", "cpu", close_gaps, Features(CPU))
dispatch.register("close_rows", "cpu", close_rows, Features(CPU, FLOATS))
dispatch.register("add_sums", "cpu", add_sums, Features(CPU, FLOATS))
