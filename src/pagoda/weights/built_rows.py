"""Matrices on disk whose rows are made of what is read, as loading makes them: codes with the scales beside them, in
formats that no kernel takes as they lie, or a GGUF file's blocks. `rows.StoredRows` are those of which nothing is made.
No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm, prod
from pathlib import Path
from typing import Any

from ..kernels.packed_bytes import PANEL, PLAIN, num_blocks
from .direct import span_bytes
from .formats.base import FAST_ELEMS, PART_BYTES, TILE_ELEMS, WeightFormat
from .header import TensorEntry
from .rows import UNIT_BYTES, OnDisk, Unit, rows_of_parts, rows_of_unit
from .schemes.base import Logical


@dataclass(frozen=True, slots=True)
class BuiltRun:
    """Rows of a matrix from ``start``: all of one ``logical`` tensor, made of its stored ``entries``."""

    logical: Logical
    entries: tuple[TensorEntry, ...]
    start: int

    @property
    def rows(self) -> int:
        return self.logical.shape[0]


@dataclass(frozen=True, slots=True)
class BuiltUnit(Unit):
    """``made``: what its parts make, one after the other: of each tensor its first row here, and how many parts."""

    made: tuple[tuple[Logical, int, int], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class BuiltRows:
    """A whole matrix in ``format`` by its runs, in order. Every unit has all that its product needs: nothing of the
    matrix is in memory.
    """

    format: WeightFormat
    rows: int
    cols: int
    runs: tuple[BuiltRun, ...]

    @classmethod
    def of_format(cls, format: WeightFormat, rows: int, cols: int) -> BuiltRows:
        """As `pagoda quantize` would write it: for plans."""
        parts = format.parts(rows, cols)
        entries = tuple(
            TensorEntry(kind, Path(), dtype, shape, 0, prod(shape) * PART_BYTES[dtype])
            for kind, (shape, dtype) in parts.items()
        )
        return cls(format, rows, cols, (BuiltRun(Logical(tuple(parts), (rows, cols), _never, format), entries, 0),))

    @property
    def step(self) -> int:
        """Rows of a unit are a multiple: of panels and of what a run is made of, or of the tiles in which the codes of
        a matrix in memory are opened, so that the sums are the same.
        """
        if not self.format.kernel:
            return max(1, TILE_ELEMS // max(1, self.cols))
        return lcm(PANEL, *(run.logical.row_step for run in self.runs))

    @property
    def row_bytes(self) -> int:
        """Of a row on disk, at most."""
        return max(_row_bytes(run) for run in self.runs)

    def why_not(self) -> str | None:
        """Why these rows cannot be made as they are read, in words; None where they can."""
        at = 0
        for run in self.runs:
            name = run.logical.parts[0]
            if not run.logical.by_rows:
                return f"tensor {name!r} is rearranged while it is read"
            if not self._makes(run):
                return f"tensor {name!r} would be packed anew at every step"
            if run.start != at or (run.start % self.step and self.format.kernel):
                return f"tensor {name!r} begins at row {run.start}, inside what is read at once"
            at += run.rows
        if not self.format.kernel and len(self.runs) > 1:
            return "its codes come from several tensors"
        return None if at == self.rows else f"rows {at} to {self.rows} come from no tensor of their own"

    def _makes(self, run: BuiltRun) -> bool:
        """Whether the run has this format's numbers, or these are plain ones."""
        stored = run.logical.format
        return self.format.kernel in PLAIN or (stored is not None and self.format.same_codes(stored))

    def on_disk(self) -> OnDisk:
        """What streaming it takes."""
        units = self.units()
        unit = max(sum(span_bytes(num_bytes) for _, _, num_bytes, _ in one.parts) for one in units)
        rows = max(one.stop - one.start for one in units)
        panels = self.format.num_bytes(rows, self.cols) if self.format.kernel else 0
        return OnDisk(
            saved=self.format.num_bytes(self.rows, self.cols),
            read=sum(num_bytes for one in units for _, _, num_bytes, _ in one.parts),
            unit=unit,
            panels=panels,
            passing=passing_bytes(unit, rows * self.cols),
        )

    def units(self) -> list[BuiltUnit]:
        """The matrix in pieces of about ``UNIT_BYTES`` as they are read, and twice that as they are multiplied."""
        opened = num_blocks(self.format.kernel, self.cols) * 4 if self.format.kernel else 0
        step = rows_of_unit(max(self.row_bytes, opened // 2), UNIT_BYTES, self.step)
        return [self.unit(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def unit(self, start: int, stop: int) -> BuiltUnit:
        """Rows ``start:stop``, which are whole steps."""
        parts, made = [], []
        for run in self.runs:
            first, last = max(start, run.start), min(stop, run.start + run.rows)
            if first < last:
                entries = rows_of_parts(run.entries, run.rows, first - run.start, last - run.start)
                parts += [(entry, entry.offset, entry.num_bytes, last - first) for entry in entries]
                made.append((run.logical, first - start, len(entries)))
        return BuiltUnit(start, stop, tuple(parts), tuple(made))

    def unit_of(self, row: int) -> BuiltUnit:
        """The fewest rows around one that can be made."""
        step = self.step if self.format.kernel else 1
        start = row // step * step
        return self.unit(start, min(start + step, self.rows))


def built_runs(found: Sequence[tuple[int, Logical]], entries: Mapping[str, TensorEntry]) -> tuple[BuiltRun, ...]:
    """(first row, tensor) in any order."""
    runs = (BuiltRun(made, tuple(entries[part] for part in made.parts), start) for start, made in found)
    return tuple(sorted(runs, key=lambda run: run.start))


def passing_bytes(unit_bytes: int, num_weights: int) -> int:
    """What stands beside a unit and its panels while these are made: codes put in order, numbers that are converted."""
    return unit_bytes + min(num_weights, FAST_ELEMS) * 8


def _row_bytes(run: BuiltRun) -> int:
    return sum(-(-e.num_bytes // run.rows) for e in run.entries if e.shape and e.shape[0] == run.rows)


def _never(_: object) -> Any:
    raise AssertionError("a plan reads nothing")
