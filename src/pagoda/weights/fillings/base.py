"""What every way of filling a matrix shares: rows come as codes or as numbers, some at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.packed_bytes import PANEL
from ..formats.base import BLOCK_ELEMS, check_finite
from ..packed import CodedMatrix, PackedMatrix

if TYPE_CHECKING:
    from ..formats.base import Codes, WeightFormat


class Filling(ABC):
    """A matrix ``[rows, cols]`` that is not complete yet."""

    def __init__(self, format: WeightFormat, rows: int, cols: int, device: torch.device) -> None:
        self.format, self.rows, self.cols, self.device = format, rows, cols, device

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        """Rows from ``start``: as codes where they are this format's already, quantized otherwise.

        Raises WeightsError for values that are not finite.
        """
        step = max(PANEL, BLOCK_ELEMS // max(self.cols, 1) // PANEL * PANEL)
        first = 0
        while first < tensor.shape[0]:
            # Blocks end where panels end, so that most panels come in one piece.
            last = min((start + first + step) // PANEL * PANEL - start, tensor.shape[0])
            self._put_block(start + first, *self._block(tensor, first, last))
            first = last

    def _block(self, tensor: Tensor | PackedMatrix, first: int, last: int) -> tuple[Codes | None, Tensor | None]:
        if isinstance(tensor, CodedMatrix):
            if self.format.row_wise and self.format.same_codes(tensor.format):
                return {n: t.to(self.device) for n, t in tensor.codes_of(first, last).items()}, None
            block = tensor.tile(first, last).to(self.device, torch.float32)
        else:
            assert isinstance(tensor, Tensor)
            block = tensor[first:last].to(self.device, torch.float32)
        check_finite(bool(torch.isfinite(block).all()))
        return None, block

    @abstractmethod
    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None: ...

    @abstractmethod
    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        """The packed matrix, once every row has come."""

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @property
    def beyond_bytes(self) -> int:
        """What it holds beyond the format's ``num_bytes``, which only its numbers tell: exceptions of bf12."""
        return 0
