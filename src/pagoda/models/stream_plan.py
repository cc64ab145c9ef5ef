"""Which matrices stay in memory and which are read from disk at every step, when a model is larger than its room.

    room   | vectors, scales, unstreamable | ring and one unit's panels | matrices kept: as many as fit, in order |

No torch: a plan is made from the shape alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

from pagoda.kernels.packed_bytes import PANEL, PLAIN, num_blocks, row_bytes
from pagoda.weights.built_rows import BuiltRows, built_runs
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.header import TensorEntry
from pagoda.weights.quantization import Quantization
from pagoda.weights.reader import Checkpoint
from pagoda.weights.rows import (
    CONVERTED_BYTES,
    NUM_READERS,
    PLAIN_DTYPES,
    STORED,
    OnDisk,
    RowRun,
    StoredRows,
    part_bytes,
    rows_of_unit,
    runs_of,
)
from pagoda.weights.schemes.base import Logical

from .shape import Matrix, ModelShape

ALIGN_BYTES = 4 * 8192  # of a unit in the ring, beside its rows: pages that are shared with its neighbours in the file
RING_UNITS = 4
NUMBERS = (*PLAIN_DTYPES, "F64")  # what plain tensors of a checkpoint may be
PLACEMENTS = ("auto", "resident", "stream", "sparse-ffn")  # what `weights` may be
MIN_SLOTS = 2  # one expert is computed, the next is read


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """``streamed`` matrices are read at every step, all others are in memory.

    resident_bytes: every parameter, or part of one, that is in memory. passing_bytes: the ring, and the panels of the
    unit that is multiplied. step_bytes: read from disk for one step, whatever its batch (a little more: whole pages).
    """

    streamed: tuple[str, ...]
    resident_bytes: int
    passing_bytes: int
    step_bytes: int
    cache_bytes: int = 0
    """For experts of all layers, in a cache; part of the passing bytes."""
    expert_slots: int = 0
    """Experts that are in it at once: as many of the mean size as fit, where they have several."""
    num_experts: int = 0
    expert_bytes: int = 0
    """Of all of them in the cache's order, whether they fit it or not."""
    neuron_slots: int = 0
    """Feed-forward neurons of every layer that are in memory at once, of ``num_neurons``; also passing bytes."""
    num_neurons: int = 0
    bundle: Checkpoint | None = None
    """The file that the other neurons are read from."""

    @property
    def num_bytes(self) -> int:
        """Memory for weights, all together."""
        return self.resident_bytes + self.passing_bytes


def can_stream(matrix: Matrix, quantization: Quantization) -> WeightFormat | None:
    """The format in which some of the matrix's rows can be multiplied alone, as they come from disk; or None."""
    found = quantization.of(matrix.name, matrix.role)
    fits = found is not None and matrix.role in ("linear", "embed") and matrix.count == 1
    return found.read_as if found is not None and fits else None


def rows_on_disk(
    format: WeightFormat, matrix: Matrix, found: Sequence[tuple[int, Logical]], entries: Mapping[str, TensorEntry]
) -> tuple[StoredRows | BuiltRows | None, str]:
    """How the matrix lies in the tensors that were ``found`` for it, each with its first row; or why it cannot be read
    from there as it is multiplied, in words. Rows that need nothing made of them come first.
    """
    for _, logical in found:
        entry = None if logical.rows is None else entries[logical.rows]
        if entry is not None and logical.format is None and entry.dtype not in NUMBERS:
            return None, f"tensor {entry.name!r} is stored as {entry.dtype} with nothing that says what its codes mean"
    if format.kernel in STORED and all(logical.rows is not None for _, logical in found):
        parts = [(start, made.shape[0], entries[made.rows]) for start, made in found if made.rows is not None]
        stored = StoredRows(format.kernel, matrix.rows, matrix.cols, runs_of(parts))
        fits = all(logical.format is None or format.same_codes(logical.format) for _, logical in found)
        if fits and stored.why_not() is None:
            return stored, ""
    built = BuiltRows(format, matrix.rows, matrix.cols, built_runs(found, entries))
    reason = built.why_not()
    return (built, "") if reason is None else (None, reason)


def usual_rows(format: WeightFormat, matrix: Matrix, plain: str = "") -> StoredRows | BuiltRows:
    """As a checkpoint of that format has the matrix, plain numbers in the type of that safetensors name (else in the
    kernel's own).
    """
    rows, cols = matrix.rows, matrix.cols
    if format.kernel not in STORED:
        return BuiltRows.of_format(format, rows, cols)
    dtype = plain if format.kernel in PLAIN and plain else STORED[format.kernel]
    entry = TensorEntry(matrix.name, Path(), dtype, (rows, cols), 0, 0)
    return StoredRows(format.kernel, rows, cols, (RowRun(entry, 0, rows),))


@dataclass(frozen=True, slots=True)
class StreamSizes:
    """Bytes of a dense model whose matrices may stay on disk, in the order of computation. Any room's plan follows.

    kept: in memory whatever happens. passing: the ring, and what is made of a unit in it.
    """

    matrices: tuple[tuple[str, OnDisk], ...]
    kept: int
    passing: int

    @classmethod
    def of(
        cls, shape: ModelShape, dtype: str, quantization: Quantization, found: Mapping[str, OnDisk] | None = None,
        plain: str = "",
    ) -> StreamSizes:  # fmt: skip
        """``found``: matrices that the checkpoint allows to stream (None: all whose format does, as a checkpoint has
        them, plain numbers of type ``plain``).
        """
        matrices = []
        known: dict[tuple[WeightFormat, int, int], OnDisk] = {}
        for matrix in shape.matrices:
            format = can_stream(matrix, quantization)
            if format is None or (found is not None and matrix.name not in found):
                continue
            rows, cols, kept = matrix.rows, matrix.cols, quantization.of(matrix.name, matrix.role)
            assert kept is not None
            if found is not None:
                one = found[matrix.name]
            else:
                key = (format, rows, cols)
                if key not in known:
                    known[key] = usual_rows(format, matrix, plain).on_disk()
                one = known[key]
            less = format.num_bytes(rows, cols) - kept.num_bytes(rows, cols)  # it is kept in another order
            matrices.append((matrix.name, replace(one, saved=one.saved - less) if less else one))
        return cls._of(matrices, shape.weight_bytes(dtype, quantization))

    @classmethod
    def of_packed(
        cls, shape: ModelShape, dtype: str, quantization: Quantization, found: Mapping[str, OnDisk]
    ) -> StreamSizes:
        """Of matrices that lie on disk in the order in which they are kept (`weights.panel_rows`)."""
        matrices = [(matrix.name, found[matrix.name]) for matrix in shape.matrices if matrix.name in found]
        return cls._of(matrices, shape.weight_bytes(dtype, quantization))

    @classmethod
    def _of(cls, matrices: Sequence[tuple[str, OnDisk]], weight_bytes: int) -> StreamSizes:
        sizes = [(one.unit, one.panels, one.passing) for _, one in matrices]
        unit, panels, made = map(max, zip(*sizes, strict=True)) if sizes else (0, 0, 0)
        passing = RING_UNITS * (unit + ALIGN_BYTES) + panels + made
        return cls(tuple(matrices), weight_bytes - sum(one.saved for _, one in matrices), passing)

    def plan(self, room_bytes: int) -> StreamPlan:
        """Keeps matrices in the order of computation for as long as they fit. The plan may exceed the room; what it
        needs at least is its ``num_bytes`` with room 0.
        """
        resident, read = self.kept, 0
        streamed = []
        for name, one in self.matrices:
            if resident + self.passing + one.saved <= room_bytes:
                resident += one.saved
            else:
                streamed.append(name)
                read += one.read
        return StreamPlan(tuple(streamed), resident, self.passing if streamed else 0, read)


def plan_stream(
    shape: ModelShape,
    dtype: str,
    quantization: Quantization,
    room_bytes: int,
    found: Mapping[str, OnDisk] | None = None,
) -> StreamPlan:
    """A dense model's plan for that room (see `StreamSizes`)."""
    return StreamSizes.of(shape, dtype, quantization, found).plan(room_bytes)


@dataclass(frozen=True, slots=True)
class ExpertSizes:
    """Bytes of a mixture: beside its experts, of parts that are read, of all experts, of those that must have a place,
    of the unit that a cache is made of. Looking at every expert of a large model takes 40 ms; any room follows from it.
    """

    names: tuple[str, ...]
    num_experts: int
    resident: int
    reading: int
    total: int
    least: int
    unit: int

    @classmethod
    def of(cls, shape: ModelShape, dtype: str, quantization: Quantization) -> ExpertSizes:
        """Every expert in its own format."""
        matrices = [matrix for matrix in shape.matrices if matrix.role == "experts"]
        experts: dict[tuple[str, int], list[tuple[WeightFormat, Matrix]]] = {}
        kept = 0
        for matrix in matrices:
            layer = matrix.name.partition(".mlp.")[0]
            for expert in range(matrix.count):
                found = quantization.of(matrix.name, matrix.role, expert)
                assert found is not None, f"{matrix.name} has no format"
                experts.setdefault((layer, expert), []).append((found.read_as, matrix))
                kept += found.num_bytes(matrix.rows, matrix.cols)
        kinds = Counter(tuple(expert) for expert in experts.values())
        sizes = {kind: sum(f.num_bytes(m.rows, m.cols) for f, m in kind) for kind in kinds}
        total = sum(sizes[kind] * count for kind, count in kinds.items())
        return cls(
            names=tuple(matrix.name for matrix in matrices),
            num_experts=len(experts),
            resident=shape.weight_bytes(dtype, quantization) - kept,
            reading=NUM_READERS * (max(map(_largest_read, kinds)) + ALIGN_BYTES),
            total=total,
            least=MIN_SLOTS * max(sizes.values()),
            unit=gcd(*sizes.values()),
        )

    def plan(self, room_bytes: int) -> StreamPlan:
        """Everything but experts is kept, and as many of those in a cache as fit."""
        room = room_bytes - self.resident - self.reading
        room -= room % self.unit  # experts of one size fill their cache, or leave the rest to others
        cache = max(min(room, self.total), min(self.least, self.total))
        slots = cache * self.num_experts // self.total
        return StreamPlan(
            self.names, self.resident, cache + self.reading, 0, cache_bytes=cache, expert_slots=slots,
            num_experts=self.num_experts, expert_bytes=self.total,
        )  # fmt: skip


def can_cache(shape: ModelShape, quantization: Quantization) -> bool:
    """Whether every expert has a format that is multiplied as it lies on disk."""
    experts = [matrix for matrix in shape.matrices if matrix.role == "experts"]
    formats = {found for m in experts for found in quantization.each(m.name, m.role, m.count)}
    return all(found is not None and found.read_as.kernel in STORED for found in formats)


def plan_experts(shape: ModelShape, dtype: str, quantization: Quantization, room_bytes: int) -> StreamPlan:
    """A mixture's plan for that room."""
    return ExpertSizes.of(shape, dtype, quantization).plan(room_bytes)


def _converted_bytes(format: WeightFormat, matrix: Matrix) -> int:
    """Of plain numbers on their way into panels, where the checkpoint has them in another type (at most)."""
    panel = num_blocks(format.kernel, matrix.cols) * PANEL * 4
    return max(CONVERTED_BYTES, panel) if format.kernel in PLAIN else 0


def _largest_read(expert: Sequence[tuple[WeightFormat, Matrix]]) -> int:
    """Of a part of an expert (`rows.part_bytes`): some rows, what stands beside all of its matrix's, and conversion."""
    sizes = [row_bytes(f.kernel, m.cols) for f, m in expert]
    step = part_bytes(sum(m.rows * size for size, (_, m) in zip(sizes, expert, strict=True)))
    return max(_converted_bytes(f, m) for f, m in expert) + max(
        min(rows_of_unit(size, step), m.rows) * size + f.stored_bytes(m.rows, m.cols) - m.rows * size
        for size, (f, m) in zip(sizes, expert, strict=True)
    )
