"""Where the rows of a matrix lie on disk, and how they are cut into units that are read at once. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..kernels.packed_bytes import PANEL, PLAIN, num_blocks, row_bytes
from .formats.base import WeightFormat
from .header import DTYPE_SIZES, TensorEntry

UNIT_BYTES = 8 << 20
"""Of rows read, laid out and multiplied at once: two reads, and little memory."""

NUM_READERS = 4
"""Parts of experts that are read at once: a small read waits longer than it takes."""
PART_BYTES = 256 << 10  # of one such read at least

STORED = {
    "fp32": "F32", "bf16": "BF16", "int8": "I8", "int4": "U8", "int5": "U8", "fp16": "F16", "fp8": "F8_E4M3",
    "nf4": "U8", "ternary": "U8",
}  # fmt: skip
"""Kernel format -> the dtype of stored rows that hold its numbers already (`kernels.lay_out`)."""
PLAIN_DTYPES = ("F32", "BF16", "F16")

CONVERTED_BYTES = 256 << 10
"""Of plain numbers in the kernel's type at a time, where the checkpoint has them in another."""


@dataclass(frozen=True, slots=True)
class RowRun:
    """Rows ``start:start + rows`` of a matrix: all of one stored tensor."""

    entry: TensorEntry
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows ``start:stop`` of a matrix; each part is ``rows`` of them: (tensor, first byte in its file, bytes, rows)."""

    start: int
    stop: int
    parts: tuple[tuple[TensorEntry, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Bytes of a matrix that is read at every step: those that are not in memory, those that a step reads (a little
    more: whole pages), of its largest unit as it is read and as it is multiplied, and what stands there on the way.
    """

    saved: int
    read: int
    unit: int
    panels: int
    passing: int = 0


@dataclass(frozen=True, slots=True)
class StoredRows:
    """A whole matrix by its runs, in order; ``kernel`` is the format that its bytes hold."""

    kernel: str
    rows: int
    cols: int
    runs: tuple[RowRun, ...]

    @property
    def dtype(self) -> str:
        """Of the stored numbers: plain ones may be of any type, and are converted when they are laid out."""
        plain = self.kernel in PLAIN and self.runs and self.runs[0].entry.dtype in PLAIN_DTYPES
        return self.runs[0].entry.dtype if plain else STORED[self.kernel]

    @property
    def converts(self) -> bool:
        return self.dtype != STORED[self.kernel]

    @property
    def row_bytes(self) -> int:
        return self.cols * DTYPE_SIZES[self.dtype] if self.converts else row_bytes(self.kernel, self.cols)

    def why_not(self) -> str | None:
        """Why these rows cannot be taken as they lie, in words; None where they can."""
        at = 0
        for run in self.runs:
            entry = run.entry
            if entry.dtype != self.dtype or entry.num_bytes != run.rows * self.row_bytes:
                return f"tensor {entry.name!r} is stored as {entry.dtype}, {self.kernel} asks for {self.dtype}"
            if run.start != at or run.start % PANEL:
                return f"tensor {entry.name!r} begins at row {run.start}, inside a panel of {PANEL}"
            at += run.rows
        return None if at == self.rows else f"rows {at} to {self.rows} come from no tensor of their own"

    def on_disk(self) -> OnDisk:
        """What streaming it takes; scales and zero points stay in memory."""
        own, rows = row_bytes(self.kernel, self.cols), min(rows_of_unit(self.row_bytes), self.rows)
        saved, read = (-(-self.rows // PANEL) * -(-size // 4) * PANEL * 4 for size in (own, self.row_bytes))
        panel = num_blocks(self.kernel, self.cols) * PANEL * 4
        converted = max(CONVERTED_BYTES, panel) if self.kernel in PLAIN else 0
        return OnDisk(saved, read, rows * self.row_bytes, rows * own + PANEL * 4, converted)

    def units(self, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
        """The matrix in pieces of at most ``unit_bytes``, whole panels each."""
        step = rows_of_unit(self.row_bytes, unit_bytes)
        return [self._unit(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def _unit(self, start: int, stop: int) -> Unit:
        parts = []
        for run in self.runs:
            first, last = max(start, run.start), min(stop, run.start + run.rows)
            if first < last:
                offset = run.entry.offset + (first - run.start) * self.row_bytes
                parts.append((run.entry, offset, (last - first) * self.row_bytes, last - first))
        return Unit(start, stop, tuple(parts))


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """One expert's matrix on disk: its rows, and the tensors beside them: ``scale`` and ``zero`` where it has them."""

    format: WeightFormat
    rows: StoredRows
    beside: Mapping[str, TensorEntry]

    @property
    def num_bytes(self) -> int:
        """In memory, as the kernels take it."""
        return self.format.num_bytes(self.rows.rows, self.rows.cols)


def rows_of_unit(row_bytes: int, unit_bytes: int = UNIT_BYTES, step: int = PANEL) -> int:
    """Whole multiples of ``step``."""
    return max(step, unit_bytes // max(1, row_bytes) // step * step)


def runs_of(entries: Sequence[tuple[int, int, TensorEntry]]) -> tuple[RowRun, ...]:
    """(first row, rows, tensor) in any order."""
    return tuple(RowRun(entry, start, rows) for start, rows, entry in sorted(entries, key=lambda found: found[0]))


def part_bytes(expert_bytes: int) -> int:
    """Of an expert, what one reader reads at once."""
    return min(UNIT_BYTES, max(PART_BYTES, expert_bytes // NUM_READERS))


def rows_of_parts(entries: Sequence[TensorEntry], rows: int, start: int, stop: int) -> tuple[TensorEntry, ...]:
    """Rows ``start:stop`` of a tensor of so many ``rows`` that is made of several stored ones. Those without a row per
    row of it come whole every time: a scale of all, what low-rank terms share.
    """
    return tuple(entry.rows(start, stop) if entry.shape and entry.shape[0] == rows else entry for entry in entries)
