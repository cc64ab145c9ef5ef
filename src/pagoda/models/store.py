"""Parameters as they arrive: placed row by row, and packed into their weight format as soon as a matrix is complete.

Peak memory is the model, one tensor as it was read, and the codes of one matrix. A format that quantizes row by row is
filled straight from the tensor that was read, a block of rows at a time; one that needs the whole matrix (low-rank
corrections) gets it in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pagoda.weights.filling import Filling, new_filling
from pagoda.weights.formats.base import TILE_ELEMS, WeightFormat
from pagoda.weights.packed import CodedMatrix, ExpertStack, PackedMatrix
from pagoda.weights.quantization import Quantization, Role

from .layers.linear import Weight
from .params import Param, Table
from .sources import Piece, Region, by_matrix, regions_of

NewFilling = Callable[..., Filling]
"""As `weights.filling.new_filling`."""


class WeightStore:
    """The parameters of one model by our names, and which of their regions have come.

    ``regions`` are all that a complete checkpoint fills; a matrix is packed when those of it are covered.
    """

    def __init__(
        self,
        table: Table,
        regions: Iterable[Region],
        quantization: Quantization,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.table, self.quantization, self.dtype, self.device = table, quantization, dtype, device
        self.weights: dict[str, Weight] = {}
        self.covered: set[Region] = set()
        self._wanted = by_matrix(regions)
        self._filling: dict[tuple[str, int], Filling] = {}
        self._new_fillings: dict[Role, NewFilling] = {}
        self._beyond_bytes = 0

    def pack_by(self, new_filling: NewFilling, roles: Iterable[Role]) -> None:
        """What matrices of these roles are packed by, not `weights.filling.new_filling`. Before any tensor comes."""
        self._new_fillings |= dict.fromkeys(roles, new_filling)

    @property
    def num_bytes(self) -> int:
        """Bytes allocated now, those of matrices under way included."""
        return sum(w.nbytes for w in self.weights.values()) + sum(f.nbytes for f in self._filling.values())

    @property
    def beyond_bytes(self) -> int:
        """Of these, what no format's ``num_bytes`` tells (`Filling.beyond_bytes`)."""
        return self._beyond_bytes + sum(f.beyond_bytes for f in self._filling.values())

    def place(self, piece: Piece, tensor: Tensor | PackedMatrix, start: int = 0, *, complete: bool = True) -> None:
        """Fills the piece's region, or its rows from ``start``; ``complete`` with the last of them.

        Raises WeightsError for values that are no numbers where they are quantized.
        """
        param = self.table[piece.param]
        format = self.quantization.of(piece.param, param.role, piece.expert)
        if format is not None:
            self._fill(piece, param, format, tensor, start)
        else:
            self._copy(piece, tensor, start)
        if complete:
            self.covered |= regions_of(piece, self._wanted)
            self._pack_if_complete(piece)

    def takes_rows(self, piece: Piece) -> bool:
        """Whether ``place`` takes the tensor some rows at a time."""
        param = self.table[piece.param]
        format = self.quantization.of(piece.param, param.role, piece.expert)
        return piece.is_rows and len(param.shape) > 1 and (format is None or format.row_wise)

    def keep(self, name: str, weight: Weight) -> None:
        """A parameter that came ready: all of its regions are covered."""
        self.weights[name] = weight
        self.covered.update(*self._wanted.get(name, {}).values())

    def take_complete(self) -> list[tuple[str, int, Any]]:
        """(parameter, expert or -1, weight) of all that is complete, which the store then no longer has."""
        found: list[tuple[str, int, Any]] = []
        for name, weight in list(self.weights.items()):
            if isinstance(weight, ExpertStack):
                found += [(name, n, expert) for n, expert in enumerate(weight.experts) if expert is not None]
                del self.weights[name]  # made anew for the experts that are still to come
            elif all(wanted <= self.covered for wanted in self._wanted[name].values()):
                found.append((name, -1, self.weights.pop(name)))
        return found

    def put_whole(self, name: str, like: str, tensor: Tensor | PackedMatrix) -> None:
        """A parameter that is not in the table, kept as ``like`` is: the head of a tied model, until it is compared."""
        param = self.table[like]
        format = self.quantization.of(like, param.role)
        if format is None:
            self._allocate(name, param).copy_(tensor if isinstance(tensor, Tensor) else tensor.dense())
            return
        filling = self._new_filling(format, param)
        filling.put(0, tensor)
        self.weights[name] = self._finished(filling)

    def fill_whole(self, name: str, expert: int, tensor: Tensor) -> None:
        """One matrix, or one whole parameter, without a checkpoint."""
        piece = Piece(name, expert=expert)
        self._wanted.setdefault(name, {})[expert] = {piece.region}
        self.place(piece, tensor)

    def dense(self, name: str) -> Tensor:
        """An unpacked parameter's tensor, allocated at first use."""
        found = self.weights.get(name)
        return found if isinstance(found, Tensor) else self._allocate(name, self.table[name])

    def _allocate(self, name: str, param: Param) -> Tensor:
        """Vectors start as zeros, since a bias may be partly given."""
        dtype = torch.float32 if param.float32 else self.dtype
        make = torch.zeros if len(param.shape) == 1 else torch.empty
        self.weights[name] = tensor = make(param.shape, dtype=dtype, device=self.device)
        return tensor

    def _copy(self, piece: Piece, tensor: Tensor | PackedMatrix, start: int) -> None:
        target = self.dense(piece.param)
        if piece.expert >= 0:
            target = target[piece.expert]
        if piece.stop:
            target = target[piece.start : piece.stop]
        if piece.is_rows and target.dim() > 1:
            target = target[start : start + tensor.shape[0]]
        if isinstance(tensor, CodedMatrix) and piece.is_rows:
            _unpack_into(target, tensor)
        else:
            dense = tensor if isinstance(tensor, Tensor) else tensor.dense()
            target.copy_(piece.cut(dense).reshape(target.shape))

    def _fill(
        self, piece: Piece, param: Param, format: WeightFormat, tensor: Tensor | PackedMatrix, start: int
    ) -> None:
        unit = (piece.param, piece.expert)
        if unit not in self._filling:
            self._filling[unit] = self._new_filling(format, param)
        if piece.is_rows:
            self._filling[unit].put(piece.start + start, tensor)
        else:
            dense = tensor if isinstance(tensor, Tensor) else tensor.dense()
            self._filling[unit].put(piece.start, piece.cut(dense).reshape(-1, param.shape[-1]))

    def _new_filling(self, format: WeightFormat, param: Param) -> Filling:
        make = self._new_fillings.get(param.role, new_filling)
        return make(format, *param.shape[-2:], dtype=self.dtype, device=self.device)

    def _finished(self, filling: Filling) -> PackedMatrix:
        packed = filling.finish(self.dtype)
        self._beyond_bytes += filling.beyond_bytes
        return packed

    def _pack_if_complete(self, piece: Piece) -> None:
        unit = (piece.param, piece.expert)
        if unit not in self._filling or not self._wanted[piece.param][piece.expert] <= self.covered:
            return
        packed, shape = self._finished(self._filling.pop(unit)), self.table[piece.param].shape
        if piece.expert < 0:
            self.weights[piece.param] = packed
            return
        stack = self.weights.setdefault(piece.param, ExpertStack(*shape))
        assert isinstance(stack, ExpertStack)
        stack.experts[piece.expert] = packed


def _unpack_into(target: Tensor, matrix: CodedMatrix) -> None:
    """A tile of rows at a time, so that the matrix never stands unpacked beside its place."""
    rows, step = matrix.shape[0], max(1, TILE_ELEMS // max(matrix.shape[1], 1))
    for start in range(0, rows, step):
        target[start : start + step] = matrix.tile(start, min(start + step, rows))
