"""The C++ bodies of what an eviction does to a sequence's heads (csrc/slots.hpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .dispatch import Features
from .layout import PageLayout


def keep_best(
    scores: Tensor, lens: Tensor, budgets: Tensor, *, sinks: int = 0, recent: int = 0, least: float = -math.inf
) -> Tensor:
    keep = torch.empty(scores.shape, dtype=torch.bool)
    scores, lens, budgets = scores.contiguous(), lens.contiguous(), budgets.contiguous()
    _cpu.keep_best(
        scores.data_ptr(), lens.data_ptr(), budgets.data_ptr(), lens.numel(), scores.shape[-1], sinks, recent, least,
        keep.data_ptr(),
    )  # fmt: skip
    return keep


def close_gaps(pages: Tensor, layout: PageLayout, rows: Tensor, keep: Tensor) -> None:
    width = pages.element_size()
    planes = [(at * width, elems * width) for at, elems in layout.planes]
    rows, keep = rows.contiguous(), keep.contiguous()
    _cpu.close_gaps(
        pages.data_ptr(), pages.shape[0], layout.page_bytes, layout.page_size, planes,
        rows.data_ptr(), rows.shape[1], keep.data_ptr(), *keep.shape,
    )  # fmt: skip


def close_rows(values: Tensor, keep: Tensor) -> None:
    assert values.stride(1) == 1
    assert values.shape[1] >= keep.shape[1]
    keep = keep.contiguous()
    _cpu.close_rows(values.data_ptr(), values.stride(0), values.shape[1], keep.data_ptr(), *keep.shape)


def add_sums(sums: Tensor, targets: Sequence[Tensor]) -> None:
    layers, seqs, heads, slots = sums.shape
    assert len(targets) == seqs
    assert all(target.is_contiguous() for target in targets)
    places = np.array([target.data_ptr() for target in targets], np.int64)
    widths = np.array([target.shape[2] for target in targets], np.int64)
    sums = sums.contiguous()
    _cpu.add_sums(sums.data_ptr(), layers, seqs, heads, slots, places.ctypes.data, widths.ctypes.data)


FLOATS = frozenset({torch.float32})
dispatch.register("keep_best", "cpu", keep_best, Features(CPU, FLOATS))
dispatch.register("close_gaps", "cpu", close_gaps, Features(CPU))
dispatch.register("close_rows", "cpu", close_rows, Features(CPU, FLOATS))
dispatch.register("add_sums", "cpu", add_sums, Features(CPU, FLOATS))
