"""One matrix on its way into a format: rows come as they are read, in any order, and are packed at once.

Three ways, by what the format can do:

    panels   a kernel knows the format: rows become codes, and whole panels of 16 rows go to their place in its order
    codes    rows become codes, in the format's own order
    whole    the format needs the matrix as a whole (low-rank corrections): kept dense until it is complete, unless its
             codes come ready
"""

from __future__ import annotations

import torch
from torch import Tensor

from .fillings.base import Filling
from .fillings.codes import RowCodes, WholeCodes
from .fillings.panels import Panels
from .formats.base import WeightFormat
from .packed import PackedMatrix

__all__ = ["Filling", "new_codes", "new_filling", "pack_matrix"]


def new_filling(
    format: WeightFormat,
    rows: int,
    cols: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    panels: Tensor | None = None,
) -> Filling:
    """An empty matrix in ``format`` for a model that computes in ``dtype``. ``panels`` (uint8, flat): memory for those,
    where the format has any; None: their own.
    """
    where = torch.device(device)
    if format.kernel:
        return Panels(format, rows, cols, where, panels)
    return new_codes(format, rows, cols, dtype=dtype, device=where)


def new_codes(
    format: WeightFormat, rows: int, cols: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Filling:
    """As `new_filling`, but what comes of it is a `CodedMatrix` in any format: the codes as they are stored."""
    where = torch.device(device)
    return RowCodes(format, rows, cols, where) if format.row_wise else WholeCodes(format, rows, cols, where, dtype)


def pack_matrix(format: WeightFormat, weight: Tensor, dtype: torch.dtype) -> PackedMatrix:
    """A whole matrix at once."""
    filling = new_filling(format, *weight.shape, dtype=dtype, device=weight.device)
    filling.put(0, weight)
    return filling.finish(dtype)
