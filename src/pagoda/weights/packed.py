"""A matrix in a weight format, as layers hold it: multiplies, gives rows, never stands unpacked as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..kernels import ops
from ..kernels.coded import DTYPES, can_open, coded_weight, fill_table
from ..kernels.packed import PackedWeight, unpack
from ..kernels.quantize import quantize_tokens
from .formats.base import TILE_ELEMS

if TYPE_CHECKING:
    from .formats.base import Codes, WeightFormat


class PackedMatrix(ABC):
    """``[rows, cols]`` in ``format``; ``dtype`` is what it unpacks to."""

    __slots__ = ("dtype", "format")

    def __init__(self, format: WeightFormat, dtype: torch.dtype) -> None:
        self.format, self.dtype = format, dtype

    @property
    @abstractmethod
    def shape(self) -> torch.Size: ...

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that it holds."""

    @abstractmethod
    def dense(self) -> Tensor:
        """The whole matrix in ``dtype``."""

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64, any shape) in ``dtype``: ``[*ids.shape, cols]``."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ self.T + bias``: x ``[..., cols]`` -> ``[..., rows]`` like x."""

    def wide_linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``linear(x, bias).float()``."""
        return self.linear(x, bias).float()

    @property
    def packed(self) -> PackedWeight | None:
        """As `ops.packed_linear` takes it, for as long as this matrix is there; None where no kernel does."""
        return None

    @property
    def dynamic(self) -> bool:
        """Whether that product asks for int8 activations."""
        return False

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors().values())

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors().values())).device


class PanelMatrix(PackedMatrix):
    """A matrix in the kernels' own order."""

    __slots__ = ("_packed",)

    def __init__(self, format: WeightFormat, packed: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__(format, dtype)
        self._packed = packed

    @property
    def packed(self) -> PackedWeight:
        return self._packed

    @property
    def dynamic(self) -> bool:
        return self.format.dynamic

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.packed.shape)

    def tensors(self) -> dict[str, Tensor]:
        found = {"data": self.packed.data, "scales": self.packed.scales, "zeros": self.packed.zeros}
        return {name: t for name, t in found.items() if t is not None}

    def dense(self) -> Tensor:
        return unpack(self.packed).to(self.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        return ops.packed_embedding(ids, self.packed, self.dtype)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.packed_linear(x, self.packed, bias, dynamic=self.format.dynamic)

    def wide_linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``linear(x, bias).float()`` in one pass."""
        return ops.packed_linear(x, self.packed, bias, dynamic=self.format.dynamic, wide=True)


class CodedMatrix(PackedMatrix):
    """A matrix as the codes of its format, for formats that no panels hold; also how stored codes are handed over."""

    __slots__ = ("_packed", "codes", "cols")

    def __init__(self, format: WeightFormat, codes: Codes, cols: int, dtype: torch.dtype) -> None:
        super().__init__(format, dtype)
        self.codes, self.cols = codes, cols
        self._packed: PackedWeight | None = None

    @property
    def packed(self) -> PackedWeight | None:
        if self._packed is None and self.dtype in DTYPES and can_open(self.format.opened, self.codes):
            format, codes, cols = self.format, self.codes, self.cols
            self._packed = coded_weight(
                format.opened, codes, self.shape[0], cols, getattr(format, "group", 0),
                lambda: format.dequantize(codes, cols),
            )  # fmt: skip
        return self._packed

    def changed(self) -> None:
        """Codes have come or gone: what a kernel knows of them is written anew, where it looks for it."""
        if self._packed is not None:
            fill_table(self._packed.data, self.format.opened, self.codes)

    @property
    def shape(self) -> torch.Size:
        rows = next(t for n, t in self.codes.items() if n not in self.format.shared)
        return torch.Size((rows.shape[0], self.cols))

    def tensors(self) -> dict[str, Tensor]:
        return self.codes

    def dense(self) -> Tensor:
        return self.format.dequantize(self.codes, self.cols).to(self.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        part = {n: t if n in self.format.shared else t.index_select(0, flat) for n, t in self.codes.items()}
        return self.format.dequantize(part, self.cols).to(self.dtype).view(*ids.shape, self.cols)

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Opened by a kernel while it multiplies, or unpacked some rows at a time. A dynamic format rounds x to int8
        first, one scale per token.
        """
        if self.packed is not None and x.dtype in DTYPES:
            return ops.packed_linear(x, self.packed, bias)
        if self.format.dynamic:
            q, scale = quantize_tokens(x)
            x = (q * scale).to(x.dtype)
        rows, step = self.shape[0], max(1, TILE_ELEMS // max(self.cols, 1))
        if rows <= step:
            return linear(x, self.dense(), bias)
        out = x.new_empty(*x.shape[:-1], rows)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            out[..., start:stop] = linear(x, self.tile(start, stop), None if bias is None else bias[start:stop])
        return out

    def codes_of(self, start: int, stop: int) -> Codes:
        """The codes of rows ``start:stop``."""
        return {n: t if n in self.format.shared else t[start:stop] for n, t in self.codes.items()}

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop`` in ``dtype``."""
        return self.format.dequantize(self.codes_of(start, stop), self.cols).to(self.dtype)


class ExpertStack:
    """The matrices of a mixture's experts, one object each: ``[num_experts, rows, cols]``."""

    __slots__ = ("_alike", "experts", "matrix_shape")

    def __init__(self, num_experts: int, rows: int, cols: int) -> None:
        self.experts: list[Any] = [None] * num_experts
        self._alike: list[list[int]] = []
        self.matrix_shape = (rows, cols)

    def __getitem__(self, expert: int) -> PackedMatrix:
        found: PackedMatrix = self.experts[expert]
        return found

    def by_format(self) -> list[list[int]]:
        """Numbers of experts that kernels multiply together, those of one format. Call when all have come."""
        if not self._alike:
            found: dict[WeightFormat, list[int]] = {}
            for number, expert in enumerate(self.experts):
                found.setdefault(expert.format, []).append(number)
            self._alike = list(found.values())
        return self._alike

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
    same = (one.format, one.shape) == (other.format, other.shape)
    ours, theirs = one.tensors(), other.tensors()
    return same and all(torch.equal(_bits(t), _bits(theirs[n])) for n, t in ours.items())


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor: equal also where a type has no comparison, or a value is no number."""
    return tensor.contiguous().view(torch.uint8)
