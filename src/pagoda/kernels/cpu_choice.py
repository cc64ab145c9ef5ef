"""The C++ body of page scores. Within a program of a whole step the same body runs (csrc/choice.hpp)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu
from .dispatch import Features


def box_scores(queries: Tensor, boxes: Tensor, isa: str = "") -> Tensor:
    """As `ops.box_scores`. For tests: ``isa`` fixes the instruction set."""
    heads, group, dim = queries.shape
    pages, parts = boxes.shape[1:3]
    split = torch.cat([queries.clamp(min=0), queries.clamp(max=0)], -1)
    if boxes[:1].stride()[1:] != (parts * 2 * dim, 2 * dim, 1):
        boxes = boxes.contiguous()
    out = torch.empty(heads, pages)
    _cpu.box_scores(
        split.data_ptr(), boxes.data_ptr(), out.data_ptr(), heads, group, 2 * dim, pages, parts, boxes.stride(0), isa
    )
    return out


dispatch.register("box_scores", "cpu", box_scores, Features(CPU, frozenset({torch.float32})))
