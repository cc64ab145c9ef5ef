"""A matrix that lies on disk: its products go unit by unit over what a stream reads."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .packed import PackedMatrix

if TYPE_CHECKING:
    from .built_rows import BuiltRows
    from .formats.base import WeightFormat
    from .panel_rows import PanelRows
    from .rows import StoredRows, Unit
    from .streaming import WeightStream


class UnitMatrix(PackedMatrix):
    """Matrix ``number`` of a stream; how a unit becomes numbers is a subclass's."""

    __slots__ = ("_number", "_stream", "_units", "stored")

    stored: StoredRows | BuiltRows | PanelRows

    def __init__(self, format: WeightFormat, dtype: torch.dtype, stream: WeightStream, number: int) -> None:
        super().__init__(format, dtype)
        self._stream, self._number = stream, number
        self.stored = stream.matrices[number]
        self._units = self.stored.units()

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.stored.rows, self.stored.cols))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def dense(self) -> Tensor:
        return self.rows(torch.arange(self.stored.rows))

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._multiply(x, bias, wide=False)

    def wide_linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``linear(x, bias).float()`` in one pass."""
        return self._multiply(x, bias, wide=True)

    def _multiply(self, x: Tensor, bias: Tensor | None, *, wide: bool) -> Tensor:
        out = x.new_empty(*x.shape[:-1], self.stored.rows, dtype=torch.float32 if wide else x.dtype)
        if out.numel() == 0:
            return out
        for index, unit in enumerate(self._units):
            here = None if bias is None else bias[unit.start : unit.stop]
            out[..., unit.start : unit.stop] = self._product(index, unit, x, here, wide=wide)
        return out

    @abstractmethod
    def _product(self, index: int, unit: Unit, x: Tensor, bias: Tensor | None, *, wide: bool) -> Tensor:
        """Outputs of unit number ``index`` alone."""
