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
from .ops.sign_hashes import MOST_BITS


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
    *,
    scores: Tensor | None = None,
    sinks: int = 0,
    recent: int = 0,
    least: float = -math.inf,
    pool: int = 1,
    values: Sequence[Tensor] = (),
) -> Tensor:
    left, stride = torch.empty(len(rows), dtype=torch.int32), num_slots
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
    return left


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """[L, H, N] whose rows are equally far apart, and how far."""
    stride = x.stride(1)
    if x.stride(2) == 1 and x.stride(0) == x.shape[1] * stride:
        return x, stride
    return x.contiguous(), x.shape[2]


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


def sign_hashes(x: Tensor, planes: Tensor, isa: str = "") -> Tensor:
    dim, bits = planes.shape
    assert bits <= MOST_BITS
    hashes, x, planes = torch.empty(x.shape[:-1]), x.contiguous(), planes.contiguous()
    _cpu.sign_hashes(x.data_ptr(), hashes.numel(), dim, planes.data_ptr(), bits, hashes.data_ptr(), isa)
    return hashes


def hash_slots(
    pages: Tensor, layout: PageLayout, rows: Tensor, first: Tensor, count: int, planes: Tensor, isa: str = ""
) -> Tensor:
    hashes, rows, first, planes = (
        torch.empty(len(rows), count),
        rows.contiguous(),
        first.contiguous(),
        planes.contiguous(),
    )
    _cpu.hash_slots(
        pages.data_ptr(), pages.shape[0], store_of(layout), layout.page_size, layout.k_dim, layout.v_dim,
        rows.data_ptr(), *rows.shape, first.data_ptr(), count, planes.data_ptr(), planes.shape[1], hashes.data_ptr(),
        isa,
    )  # fmt: skip
    return hashes


def hash_scores(hashes: Tensor, queries: Tensor, bits: int, isa: str = "") -> Tensor:
    scores, queries = torch.empty(hashes.shape), queries.contiguous()
    hashes, stride = _rows(hashes)
    group = queries.shape[-1]
    _cpu.hash_scores(
        hashes.data_ptr(), stride, queries.numel() // group, hashes.shape[-1], queries.data_ptr(), group, bits,
        scores.data_ptr(), isa,
    )  # fmt: skip
    return scores


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
dispatch.register("sign_hashes", "cpu", sign_hashes, Features(CPU, FLOATS))
dispatch.register("hash_slots", "cpu", hash_slots, Features(CPU, frozenset({*DTYPES, torch.uint8}), CODECS))
dispatch.register("hash_scores", "cpu", hash_scores, Features(CPU, FLOATS))
dispatch.register("close_gaps", "cpu", close_gaps, Features(CPU))
dispatch.register("close_rows", "cpu", close_rows, Features(CPU, FLOATS))
dispatch.register("add_sums", "cpu", add_sums, Features(CPU, FLOATS))
