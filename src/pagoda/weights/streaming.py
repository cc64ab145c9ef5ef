"""Matrices that stay on disk: a product reads them unit by unit, while a thread reads ahead what comes next.

All streamed matrices of a model share one `WeightStream`, whose ring is filled in the order of computation, over and
over: one pass over the weights serves every sequence of a step (FlexGen, https://arxiv.org/abs/2303.06865, 4.1;
TPI-LLM's sliding window, https://arxiv.org/abs/2410.00531, 3.3).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.errors import WeightsError
from ..kernels import ops
from ..kernels.lay_out import STORED, lay_out_rows, panel_bytes
from ..kernels.packed import PackedWeight
from ..kernels.packed_bytes import PANEL, num_blocks
from .ahead import ReadAhead
from .built_rows import BuiltRows
from .by_unit import UnitMatrix
from .direct import ALIGN, aligned_buffer, span_bytes
from .fillings.scales import scales_by_panel
from .formats.base import NOT_FINITE
from .panel_rows import PanelRows
from .reader import Checkpoint, torch_dtype
from .rows import CONVERTED_BYTES, StoredRows, Unit

if TYPE_CHECKING:
    from .formats.base import WeightFormat

RING_UNITS, NUM_READERS = 4, 2
Rows = StoredRows | BuiltRows | PanelRows
"""How a matrix lies on disk."""


class WeightStream:
    """``matrices`` in the order in which a step multiplies with them; those in ``looked_up`` only give rows."""

    def __init__(self, matrices: Sequence[Rows], checkpoint: Checkpoint, looked_up: Collection[int] = ()) -> None:
        self.matrices = list(matrices)
        # The thread that reads ahead and look-ups of single rows have each their own.
        self._files, self._row_files = (checkpoint.open_files(use_cache=False) for _ in range(2))
        self._looked_up = frozenset(looked_up)
        multiplied = [(number, m) for number, m in enumerate(matrices) if number not in looked_up]
        self._units: list[tuple[int, int, Unit]] = [
            (number, i, unit) for number, m in multiplied for i, unit in enumerate(m.units())
        ]
        self._sizes = [sum(span_bytes(num_bytes) for _, _, num_bytes, _ in unit.parts) for *_, unit in self._units]
        ring = RING_UNITS * max(self._sizes, default=0)
        panels = max((_panel_bytes(m, u) for _, m in multiplied for u in m.units()), default=0)
        passing = (m.on_disk() for _, m in multiplied if isinstance(m, BuiltRows))
        made = max((found.passing + found.panels - min(found.panels, panels) for found in passing), default=0)
        converted = converted_bytes(m for _, m in multiplied if isinstance(m, StoredRows))
        self.num_bytes = ring + panels + max(made, converted)
        self._panels = torch.empty(panels, dtype=torch.uint8)
        self._files.open_all()
        self._ahead: ReadAhead | None = ReadAhead(
            self._sizes, aligned_buffer(ring), self._fill, repeat=True, num_threads=NUM_READERS
        )

    @property
    def bytes_per_pass(self) -> int:
        """Read from disk for one step, whatever its batch."""
        return sum(self._sizes)

    def panels(self, number: int, index: int) -> Tensor:
        """Unit ``index`` of a matrix in the kernels' order ``[panels, blocks, 64]``, valid until the next is asked for.

        Raises WeightsError as ``unit`` does.
        """
        matrix = self.matrices[number]
        assert isinstance(matrix, StoredRows)
        with self.unit(number, index) as (unit, parts):
            return lay_out_unit(matrix, unit, parts, self._panels, torch.get_num_threads())

    @contextmanager
    def unit(self, number: int, index: int) -> Iterator[tuple[Unit, list[Tensor]]]:
        """Unit ``index`` of a matrix, and the bytes of its parts as they were read, valid inside the ``with``.

        Units that come before it in the ring are passed over: a step without logits does not read the head.
        Raises WeightsError naming file and tensor.
        """
        if self._ahead is None:
            raise WeightsError("the model is closed; its weights are no longer read")
        assert number not in self._looked_up, "this matrix only gives rows; it never comes through the ring"
        while True:
            place, raw = self._ahead.take()
            found = self._units[place]
            try:
                if found[:2] == (number, index):
                    self._files.check(entry for entry, *_ in found[2].parts)
                    yield found[2], _cut(found[2], raw)
                    return
            finally:
                self._ahead.give_back()

    @property
    def scratch(self) -> Tensor:
        """Room for the panels of any unit, uint8: what is in it is valid until the next unit is laid out."""
        return self._panels

    def _fill(self, place: int, buffer: Tensor) -> None:
        start = 0
        for entry, offset, num_bytes, _ in self._units[place][2].parts:
            self._files.read_range(entry, offset, num_bytes, buffer[start:])
            start += span_bytes(num_bytes)

    def read_rows(self, number: int, ids: Sequence[int]) -> Tensor:
        """Single rows of a matrix as its kernel takes them, ``[len(ids), row]``: look-ups in an embedding."""
        matrix = self.matrices[number]
        assert isinstance(matrix, StoredRows)
        buffer = aligned_buffer(span_bytes(matrix.row_bytes))
        out = torch.empty(len(ids), matrix.row_bytes, dtype=torch.uint8)
        for i, row in enumerate(ids):
            run = next(run for run in matrix.runs if run.start <= row < run.start + run.rows)
            offset = run.entry.offset + (row - run.start) * matrix.row_bytes
            out[i] = self._row_files.read_range(run.entry, offset, matrix.row_bytes, buffer)
            self._row_files.check([run.entry])
        return out.view(_dtype(matrix)).to(STORED[matrix.kernel])

    def read_unit(self, unit: Unit) -> list[Tensor]:
        """The bytes of some rows' parts, in memory of their own: look-ups where rows are made of what is read."""
        buffer = aligned_buffer(sum(span_bytes(num_bytes) for _, _, num_bytes, _ in unit.parts))
        start = 0
        for entry, offset, num_bytes, _ in unit.parts:
            self._row_files.read_range(entry, offset, num_bytes, buffer[start:])
            start += span_bytes(num_bytes)
        self._row_files.check(entry for entry, *_ in unit.parts)
        return _cut(unit, buffer)

    def close(self) -> None:
        """Ends the thread, closes the files, lets the ring go."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead, self._panels = None, torch.empty(0, dtype=torch.uint8)
            self._files.close()
            self._row_files.close()


def _cut(unit: Unit, raw: Tensor) -> list[Tensor]:
    """The bytes of every part, which were read one behind the other in whole pages."""
    parts, start = [], 0
    for _, offset, num_bytes, _ in unit.parts:
        parts.append(raw[start + offset % ALIGN :][:num_bytes])
        start += span_bytes(num_bytes)
    return parts


def _panel_bytes(matrix: Rows, unit: Unit) -> int:
    """Of what is laid out in memory before it is multiplied."""
    if isinstance(matrix, PanelRows):
        return 0
    kernel = matrix.kernel if isinstance(matrix, StoredRows) else matrix.format.kernel
    return panel_bytes(kernel, unit.stop - unit.start, matrix.cols) if kernel else 0


class StreamedMatrix(UnitMatrix):
    """One matrix of a stream; scales and zero points, where its format has them, are in memory."""

    __slots__ = ("_scales", "_zeros")

    stored: StoredRows

    def __init__(
        self, format: WeightFormat, dtype: torch.dtype, stream: WeightStream, number: int, codes: Mapping[str, Tensor]
    ) -> None:
        super().__init__(format, dtype, stream, number)
        assert isinstance(self.stored, StoredRows)
        group = format.kernel_group
        self._scales, self._zeros = (
            scales_by_panel(codes[name], group) if name in codes else None for name in ("scale", "zero")
        )

    def tensors(self) -> dict[str, Tensor]:
        """What is in memory."""
        found = {"scales": self._scales, "zeros": self._zeros}
        return {name: t for name, t in found.items() if t is not None}

    def rows(self, ids: Tensor) -> Tensor:
        flat = ids.reshape(-1)
        stored = self._stream.read_rows(self._number, flat.tolist())
        if self._scales is not None:
            stored = self.format.dequantize(self._codes(stored, flat), self.stored.cols)
        return stored[:, : self.stored.cols].to(self.dtype).view(*ids.shape, self.stored.cols)

    def _codes(self, stored: Tensor, ids: Tensor) -> dict[str, Tensor]:
        found = {"codes": stored}
        for name, values in (("scale", self._scales), ("zero", self._zeros)):
            if values is not None:
                by_row = values[0].transpose(1, 2).flatten(0, 1) if self.format.kernel_group else values[0]
                found[name] = by_row.index_select(0, ids)
        return found

    def _product(self, index: int, unit: Unit, x: Tensor, bias: Tensor | None, *, wide: bool) -> Tensor:
        part = self._packed(unit, self._stream.panels(self._number, index))
        return ops.packed_linear(x, part, bias, dynamic=self.format.dynamic, wide=wide)

    def _packed(self, unit: Unit, panels: Tensor) -> PackedWeight:
        first, last = unit.start // PANEL, -(-unit.stop // PANEL)
        group = self.format.kernel_group
        at = slice(first, last) if group else slice(first * PANEL, last * PANEL)
        scales, zeros = (None if t is None else t[:, at] for t in (self._scales, self._zeros))
        rows, cols = unit.stop - unit.start, self.stored.cols
        return PackedWeight(self.stored.kernel, rows, cols, panels[None], scales, zeros, group, experts=1)


def lay_out_unit(
    matrix: StoredRows, unit: Unit, parts: Sequence[Tensor], panels: Tensor, num_threads: int = 1
) -> Tensor:
    """The unit's rows, the bytes of each of its parts as they were read, at the start of ``panels`` (uint8, flat).

    Raises WeightsError naming the tensor whose values are no numbers.
    """
    blocks = num_blocks(matrix.kernel, matrix.cols)
    first = 0
    for (entry, _, _, rows), raw in zip(unit.parts, parts, strict=True):
        last = first + -(-rows // PANEL) * blocks * PANEL * 4
        if not _lay_out(matrix, _rows(raw, _dtype(matrix), rows), panels[first:last], num_threads):
            raise WeightsError(f"{entry.file}: tensor {entry.name!r}: {NOT_FINITE}")
        first = last
    return panels[:first].view(-1, blocks, PANEL * 4)


def _lay_out(matrix: StoredRows, stored: Tensor, panels: Tensor, num_threads: int) -> bool:
    """Numbers of another type are converted some rows at a time, on their way into the panels."""
    if not matrix.converts:
        return lay_out_rows(matrix.kernel, stored, panels, num_threads)
    finite, step = True, converted_rows(matrix)
    size = panel_bytes(matrix.kernel, PANEL, matrix.cols)
    for start in range(0, stored.shape[0], step):
        part = stored[start : start + step].to(STORED[matrix.kernel])
        at = panels[start // PANEL * size :][: -(-part.shape[0] // PANEL) * size]
        finite = lay_out_rows(matrix.kernel, part, at, num_threads) and finite
    return finite


def converted_rows(matrix: StoredRows) -> int:
    """Rows that are converted at a time: whole panels."""
    return max(PANEL, CONVERTED_BYTES // panel_bytes(matrix.kernel, PANEL, matrix.cols) * PANEL)


def converted_bytes(matrices: Iterable[StoredRows]) -> int:
    """What conversion takes beside the panels at most; 0 where nothing is converted."""
    sizes = (panel_bytes(m.kernel, converted_rows(m), m.cols) for m in matrices if m.converts)
    return max(sizes, default=0)


def _dtype(matrix: StoredRows) -> torch.dtype:
    return torch_dtype(matrix.dtype) if matrix.converts else STORED[matrix.kernel]


def _rows(raw: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    if raw.storage_offset() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(rows, -1)
