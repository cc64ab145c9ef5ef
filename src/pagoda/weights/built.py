"""Matrices of a stream whose rows are made of what is read: unit by unit into the format that they have in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import WeightsError
from .built_rows import BuiltRows, BuiltUnit
from .by_unit import UnitMatrix
from .filling import new_filling
from .packed import CodedMatrix, PackedMatrix
from .reader import tensor_of

if TYPE_CHECKING:
    from .rows import Unit
    from .streaming import WeightStream


class BuiltMatrix(UnitMatrix):
    """One matrix of a stream; nothing of it is in memory. Products are those of the matrix that loading would make."""

    __slots__ = ()

    stored: BuiltRows

    def __init__(self, dtype: torch.dtype, stream: WeightStream, number: int) -> None:
        stored = stream.matrices[number]
        assert isinstance(stored, BuiltRows)
        super().__init__(stored.format, dtype, stream, number)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def rows(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        rows = torch.empty(len(flat), self.stored.cols, dtype=self.dtype)
        if self.format.kernel:
            first = flat // self.stored.step
            for number in first.unique().tolist():  # each unit is read once, whichever of its rows are asked for
                unit, made = self._around(number * self.stored.step)
                at = (first == number).nonzero()[:, 0]
                rows[at] = made.rows(flat[at] - unit.start)
        elif len(flat):  # opened together, as codes in memory are: low-rank sums go by how many rows there are
            each = {row: self._around(row)[1] for row in set(flat.tolist())}
            rows = _joined([each[row] for row in flat.tolist()]).dense()
        return rows.view(*ids.shape, self.stored.cols)

    def _around(self, row: int) -> tuple[BuiltUnit, PackedMatrix]:
        """The fewest rows around one that can be made."""
        unit = self.stored.unit_of(row)
        return unit, build(self.stored, unit, self._stream.read_unit(unit), self.dtype)

    def _product(self, index: int, unit: Unit, x: Tensor, bias: Tensor | None, *, wide: bool) -> Tensor:
        assert isinstance(unit, BuiltUnit)
        with self._stream.unit(self._number, index) as (_, parts):
            made = build(self.stored, unit, parts, self.dtype, self._stream.scratch)
            return made.wide_linear(x, bias) if wide else made.linear(x, bias)


def _joined(rows: Sequence[PackedMatrix]) -> CodedMatrix:
    """Codes of several matrices of one row as those of one matrix."""
    first = rows[0]
    assert isinstance(first, CodedMatrix)
    each = {kind: [one.codes[kind] for one in rows if isinstance(one, CodedMatrix)] for kind in first.codes}
    codes = {kind: parts[0] if kind in first.format.shared else torch.cat(parts) for kind, parts in each.items()}
    return CodedMatrix(first.format, codes, first.cols, first.dtype)


def build(
    matrix: BuiltRows, unit: BuiltUnit, parts: Sequence[Tensor], dtype: torch.dtype, panels: Tensor | None = None
) -> PackedMatrix:
    """The unit's rows out of the bytes of its ``parts``, for a model that computes in ``dtype``; codes may be views of
    these, and panels lie in ``panels`` where that is given.

    Raises WeightsError naming file and tensor.
    """
    made, at = [], 0
    for logical, first, count in unit.made:
        entries = [entry for entry, *_ in unit.parts[at : at + count]]
        tensors = {e.name: tensor_of(e, raw) for e, raw in zip(entries, parts[at : at + count], strict=True)}
        made.append((first, entries[0], logical.build(tensors)))
        at += count
    format, cols = matrix.format, matrix.cols
    if not format.kernel:
        ((_, _, codes),) = made
        assert isinstance(codes, CodedMatrix)
        return CodedMatrix(format, codes.codes, cols, dtype)
    filling = new_filling(format, unit.stop - unit.start, cols, dtype=dtype, panels=panels)
    for first, entry, tensor in made:
        try:
            filling.put(first, tensor)
        except WeightsError as error:
            raise WeightsError(f"{entry.file}: tensor {entry.name!r}: {error}") from error
    return filling.finish(dtype)
