"""A matrix in a weight format, as layers hold it: multiplies, gives rows, never stands unpacked as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

if TYPE_CHECKING:
    from .formats.base import Codes, WeightFormat

TILE_ELEMS = 1 << 20  # unpacked at a time: 4 MiB of float32


class PackedMatrix:
    """``[rows, cols]`` in ``format``; ``dtype`` is what it unpacks to. The plain way, for every format."""

    __slots__ = ("codes", "cols", "dtype", "format")

    def __init__(self, format: WeightFormat, codes: Codes, cols: int, dtype: torch.dtype) -> None:
        self.format, self.codes, self.cols, self.dtype = format, codes, cols, dtype

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self._any_row_part().shape[0], self.cols))

    @property
    def device(self) -> torch.device:
        return self._any_row_part().device

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.codes.values())

    def dense(self) -> Tensor:
        """The whole matrix in ``dtype``."""
        return self.format.dequantize(self.codes, self.cols).to(self.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64, any shape) in ``dtype``: ``[*ids.shape, cols]``."""
        flat = ids.reshape(-1)
        part = {n: t if n in self.format.shared else t.index_select(0, flat) for n, t in self.codes.items()}
        return self.format.dequantize(part, self.cols).to(self.dtype).view(*ids.shape, self.cols)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ self.T + bias``: x ``[..., cols]`` in ``dtype`` -> ``[..., rows]``. Unpacks some rows at a time."""
        rows, step = self.shape[0], max(1, TILE_ELEMS // max(self.cols, 1))
        if rows <= step:
            return linear(x, self.dense(), bias)
        out = x.new_empty(*x.shape[:-1], rows)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            out[..., start:stop] = linear(x, self.tile(start, stop), None if bias is None else bias[start:stop])
        return out

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop`` in ``dtype``."""
        part = {n: t if n in self.format.shared else t[start:stop] for n, t in self.codes.items()}
        return self.format.dequantize(part, self.cols).to(self.dtype)

    def _any_row_part(self) -> Tensor:
        return next(t for n, t in self.codes.items() if n not in self.format.shared)


class ExpertStack:
    """The matrices of a mixture's experts, one object each: ``[num_experts, rows, cols]``."""

    __slots__ = ("experts", "matrix_shape")

    def __init__(self, num_experts: int, rows: int, cols: int) -> None:
        self.experts: list[Any] = [None] * num_experts
        self.matrix_shape = (rows, cols)

    def __getitem__(self, expert: int) -> PackedMatrix:
        found: PackedMatrix = self.experts[expert]
        return found

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.experts), *self.matrix_shape))

    @property
    def nbytes(self) -> int:
        return sum(e.nbytes for e in self.experts if e is not None)


def equal(one: object, other: object) -> bool:
    """Whether two parameters, tensors or packed matrices, are the same numbers."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if not (isinstance(one, PackedMatrix) and isinstance(other, PackedMatrix)):
        return False
    same = (one.format, one.cols) == (other.format, other.cols)
    return same and all(torch.equal(_bits(t), _bits(other.codes[n])) for n, t in one.codes.items())


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: equal also where a type has no comparison, or a value is no number."""
    return tensor.contiguous().view(torch.uint8)
