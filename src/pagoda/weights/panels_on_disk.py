"""Matrices of a stream that lie on disk in the kernels' own order: they are multiplied where they were read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels import ops
from ..kernels.bf12 import RECORD
from ..kernels.packed import PackedWeight
from ..kernels.packed_bytes import PANEL, data_shape
from .by_unit import UnitMatrix
from .panel_rows import PanelRows

if TYPE_CHECKING:
    from .rows import Unit
    from .streaming import WeightStream


class PanelsOnDisk(UnitMatrix):
    """One matrix of a stream; ``beside``: its scales and zero points, as a `PackedWeight` has them, in memory."""

    __slots__ = ("_beside",)

    stored: PanelRows

    def __init__(self, dtype: torch.dtype, stream: WeightStream, number: int, beside: Mapping[str, Tensor]) -> None:
        stored = stream.matrices[number]
        assert isinstance(stored, PanelRows)
        super().__init__(stored.format, dtype, stream, number)
        self._beside = dict(beside)

    def tensors(self) -> dict[str, Tensor]:
        """What is in memory."""
        return self._beside

    def rows(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        out = torch.empty(len(flat), self.stored.cols, dtype=self.dtype)
        panels = flat // PANEL
        for panel in panels.unique().tolist():  # each is read once, whichever of its rows are asked for
            start = panel * PANEL
            unit = self.stored.unit(start, min(start + PANEL, self.stored.rows))
            (raw,) = self._stream.read_unit(unit)
            at = (panels == panel).nonzero()[:, 0]
            out[at] = ops.packed_embedding(flat[at] - start, self._weight(unit, raw), self.dtype)
        return out.view(*ids.shape, self.stored.cols)

    def _product(self, index: int, unit: Unit, x: Tensor, bias: Tensor | None, *, wide: bool) -> Tensor:
        with self._stream.unit(self._number, index) as (_, (raw,)):
            return ops.packed_linear(x, self._weight(unit, raw), bias, dynamic=self.format.dynamic, wide=wide)

    def _weight(self, unit: Unit, raw: Tensor) -> PackedWeight:
        """Rows of the matrix whose panels are ``raw``."""
        first, last = unit.start // PANEL, -(-unit.stop // PANEL)
        kernel, group, cols = self.format.kernel, self.format.kernel_group, self.stored.cols
        if kernel == "bf12":  # a record says where its exceptions are, counted from itself
            scales, zeros = self._beside["scales"][RECORD * first :], None
        else:
            at = slice(first, last) if group else slice(first * PANEL, last * PANEL)
            found = (self._beside.get(name) for name in ("scales", "zeros"))
            scales, zeros = (None if t is None else t[:, at] for t in found)
        data = raw.view(1, *data_shape(kernel, last - first, cols))
        return PackedWeight(kernel, unit.stop - unit.start, cols, data, scales, zeros, group)
