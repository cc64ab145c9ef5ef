"""Matrices that become codes: row by row, or as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..formats.base import FAST_ELEMS, WeightFormat
from ..packed import CodedMatrix, PackedMatrix
from .base import Filling

if TYPE_CHECKING:
    from ..formats.base import Codes


class RowCodes(Filling):
    def __init__(self, format: WeightFormat, rows: int, cols: int, device: torch.device) -> None:
        super().__init__(format, rows, cols, device)
        parts = format.parts(rows, cols)
        self.codes = {n: torch.empty(shape, dtype=getattr(torch, t), device=device) for n, (shape, t) in parts.items()}

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        if isinstance(tensor, CodedMatrix) and self.format.same_codes(tensor.format):
            self._put_codes(start, tensor.codes)
        elif not self._put_fast(start, tensor):
            super().put(start, tensor)

    def _put_fast(self, start: int, tensor: Tensor | PackedMatrix) -> bool:
        """Plain weights, quantized by a kernel; False where there is none for them."""
        if not isinstance(tensor, Tensor) or self.device.type != "cpu":
            return False
        step = max(1, FAST_ELEMS // max(1, self.cols))
        for first in range(0, tensor.shape[0], step):
            rows = tensor[first : first + step].contiguous()
            codes = self.format.quantize_fast(rows, torch.get_num_threads())
            if codes is None:
                return False
            self._put_codes(start + first, codes)
        return True

    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None:
        if codes is None:
            assert block is not None
            codes = self.format.quantize(block)
        self._put_codes(start, codes)

    def _put_codes(self, start: int, codes: Codes) -> None:
        for name, part in codes.items():
            self.codes[name][start : start + part.shape[0]] = part

    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        return CodedMatrix(self.format, self.codes, self.cols, dtype)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.codes.values())


class WholeCodes(Filling):
    def __init__(self, format: WeightFormat, rows: int, cols: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(format, rows, cols, device)
        self.dtype = dtype
        self.matrix: Tensor | None = None
        self.ready: Codes | None = None

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        if isinstance(tensor, CodedMatrix) and self.format.same_codes(tensor.format) and tensor.shape[0] == self.rows:
            self.ready = {n: t.to(self.device, copy=True) for n, t in tensor.codes.items()}
        else:
            super().put(start, tensor)

    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None:
        assert block is not None
        if self.matrix is None:
            self.matrix = torch.empty(self.rows, self.cols, dtype=self.dtype, device=self.device)
        self.matrix[start : start + block.shape[0]] = block

    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        codes = self.ready
        if codes is None:
            assert self.matrix is not None, "rows are missing"
            codes = self.format.quantize(self.matrix.float())
        return CodedMatrix(self.format, codes, self.cols, dtype)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in ([self.matrix] if self.ready is None else self.ready.values()) if t is not None)
