"""Numbers that are remembered of each slot move up with the slots."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op


def close_rows(values: Tensor, keep: Tensor) -> None:
    """values float32 ``[R, C]``, neighbours side by side, changed in place: the columns of each row that ``keep`` bool
    ``[R, N]``, ``N <= C``, names become 0, 1, 2 …, in order; all others are 0.
    """
    key = (values.dtype, values.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(values.device.type, (values.dtype,)))
    run(values, keep)


def reference(values: Tensor, keep: Tensor) -> None:
    row, column = keep.nonzero(as_tuple=True)
    held = values[row, column]
    values.zero_()
    values[row, (keep.long().cumsum(-1) - 1)[row, column]] = held


_OP = Op("close_rows", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, rows: int, columns: int, slots: int) -> dict[str, object]:
    return {"values": make.normal(rows, columns), "keep": make.normal(rows, slots) > 0}


CASES = [
    Case("rows", lambda make: _case(make, 6, 40, 33), ("values",)),
    Case("all columns", lambda make: _case(make, 3, 20, 20), ("values",)),
    Case("no slots", lambda make: _case(make, 2, 5, 0), ("values",)),
]
