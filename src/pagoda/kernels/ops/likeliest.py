"""The likeliest tokens of each row of logits, in order, without ranking the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op


def likeliest(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """logits float32 ``[N, V]`` -> the ``width`` largest of each row, falling, float32 ``[N, width]``, and their ids
    int64; ``width <= V``. Of equals, which are named and in which order is open.

    A row that holds a NaN has one as its first value; its ids are ids, no more.
    """
    key = (logits.dtype, logits.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(logits.device.type, (logits.dtype,)))
    out: tuple[Tensor, Tensor] = run(logits, width)
    return out


def reference(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    found = torch.topk(logits, width)
    return found.values, found.indices


_OP = Op("likeliest", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}

_INF = float("inf")


def _case(make: Make, rows: int, count: int, width: int, outside: float | None = None) -> dict[str, object]:
    """Without equals, whose order is open; ``outside``: the first row's last number, else the largest of all."""
    logits = make.normal(rows, count).flatten().argsort().float().view(rows, count) - count
    if rows and outside is not None:
        logits[0, -1] = outside
    return {"logits": logits, "width": width}


CASES = cross(
    "likeliest", _case,
    {"rows": 3, "count": 50, "width": 50}, {"rows": 3, "count": 50, "width": 7}, {"rows": 1, "count": 1, "width": 1},
    {"rows": 0, "count": 50, "width": 5}, {"rows": 2, "count": 1024, "width": 1},
    {"rows": 2, "count": 1025, "width": 64}, {"rows": 2, "count": 17001, "width": 64},
    {"rows": 1, "count": 17001, "width": 1024},
    {"rows": 1, "count": 4096, "width": 3, "outside": 1e9}, {"rows": 1, "count": 5000, "width": 5000, "outside": -_INF},
)  # fmt: skip
