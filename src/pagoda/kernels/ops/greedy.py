"""The likeliest token of each row of logits, without ranking the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op


def greedy(logits: Tensor) -> Tensor:
    """logits float32 ``[N, V]`` -> ids int64 ``[N]``: the first of the largest.

    -1 where no token is possible: the largest is infinite, of either sign, or a logit is no number.
    """
    key = (logits.dtype, logits.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(logits.device.type, (logits.dtype,)))
    out: Tensor = run(logits)
    return out


def reference(logits: Tensor) -> Tensor:
    best, ids = logits.max(dim=-1)
    return torch.where(best.isfinite(), ids, -1)


_OP = Op("greedy", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}

_INF = float("inf")


def _case(make: Make, rows: int, width: int, cells: tuple[tuple[int, int, float], ...] = ()) -> dict[str, object]:
    logits = make.normal(rows, width)
    for row, column, value in cells:
        logits[row, column] = value
    return {"logits": logits}


CASES = cross(
    "greedy", _case,
    {"rows": 3, "width": 50}, {"rows": 2, "width": 17001}, {"rows": 1, "width": 1}, {"rows": 0, "width": 50},
    {"rows": 2, "width": 17000, "cells": ((0, 16990, 9.0), (0, 3, 9.0), (1, 16999, 9.0))},  # the first of equals
    {"rows": 4, "width": 40, "cells": ((0, 39, float("nan")), (1, 2, float("nan")), (2, 7, _INF), (3, 7, -_INF))},
    {"rows": 1, "width": 5, "cells": tuple((0, column, -_INF) for column in range(5))},
    {"rows": 2, "width": 20000, "cells": ((0, 19999, float("nan")), (0, 5, 99.0), (1, 0, float("nan")))},
)  # fmt: skip
