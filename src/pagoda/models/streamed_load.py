"""Filling a model that is larger than its room: some matrices are kept, the others stay on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pagoda.weights.ahead import ReadAhead
from pagoda.weights.direct import ALIGN, aligned_buffer, span_bytes
from pagoda.weights.expert_cache import CachedExperts, ExpertCache
from pagoda.weights.filling import new_filling
from pagoda.weights.packed import CodedMatrix, PackedMatrix
from pagoda.weights.rows import StoredRows, Unit
from pagoda.weights.schemes.pagoda import CODE
from pagoda.weights.source import TensorSource
from pagoda.weights.streaming import RING_UNITS, STORED, StreamedMatrix, WeightStream

from .stream_plan import StreamPlan

if TYPE_CHECKING:
    from pagoda.weights.formats.base import WeightFormat

    from .model import Model

EMBED, HEAD = "embed.weight", "lm_head.weight"
Done = Callable[[int], None]


def keep_resident(
    model: Model, source: TensorSource, plan: StreamPlan, rows: Mapping[str, StoredRows], done: Done
) -> None:
    """The matrices that the plan keeps, read unit by unit: at no time does one stand there twice."""
    kept = {name: matrix for name, matrix in rows.items() if name not in plan.streamed}
    work = [(name, unit) for name, matrix in kept.items() for unit in matrix.units()]
    sizes = [sum(span_bytes(num_bytes) for _, _, num_bytes, _ in unit.parts) for _, unit in work]
    codes = {name: _codes(model, source, name) for name in kept}
    with source.checkpoint.open_files(use_cache=True) as files:

        def fill(index: int, buffer: Tensor) -> None:
            start = 0
            for entry, offset, num_bytes, _ in work[index][1].parts:
                files.read_range(entry, offset, num_bytes, buffer[start:])
                start += span_bytes(num_bytes)

        ahead = ReadAhead(sizes, aligned_buffer(RING_UNITS * max(sizes, default=0)), fill)
        try:
            filling = None
            for (name, unit), raw in zip(work, ahead, strict=True):
                files.check(entry for entry, *_ in unit.parts)
                format, matrix = _format(model, name), kept[name]
                if unit.start == 0:
                    filling = new_filling(format, matrix.rows, matrix.cols, dtype=model.dtype)
                assert filling is not None
                for start, stored in _stored(matrix, unit, raw):
                    filling.put(start, _as_matrix(format, stored, start, codes[name], matrix.cols))
                done(raw.nbytes)
                if unit.stop == matrix.rows:
                    model.keep(name, filling.finish(model.dtype))
        finally:
            ahead.close()


def stream_rest(model: Model, source: TensorSource, plan: StreamPlan, rows: Mapping[str, StoredRows]) -> WeightStream:
    """The matrices that the plan leaves on disk. The stream begins to read at once."""
    tied = HEAD not in rows and HEAD not in {m.name for m in model.shape.matrices}
    order = [name for name in rows if name in plan.streamed and name != EMBED]
    if EMBED in plan.streamed:
        order.append(EMBED)  # tied, it is the head: the last of a step
    looked_up = {len(order) - 1} if EMBED in plan.streamed and not tied else set()
    stream = WeightStream([rows[name] for name in order], source.checkpoint, looked_up)
    for number, name in enumerate(order):
        codes = _codes(model, source, name)
        model.keep(name, StreamedMatrix(_format(model, name), model.dtype, stream, number, codes))
    return stream


def _format(model: Model, name: str) -> WeightFormat:
    found = model.quantization.of(name, model.shape_role(name))
    assert found is not None, f"{name} has no format"
    return found


def _codes(model: Model, source: TensorSource, name: str) -> dict[str, Tensor]:
    """Scales and zero points of a matrix of our own checkpoints; nothing for plain numbers."""
    logical = source.logical.get(f"pagoda.{name}")
    if logical is None or logical.format is None:
        return {}
    kinds = {part.rpartition(CODE)[2]: part for part in logical.parts}
    return {kind: source.checkpoint.read(kinds[kind]) for kind in ("scale", "zero") if kind in kinds}


def _stored(matrix: StoredRows, unit: Unit, raw: Tensor) -> list[tuple[int, Tensor]]:
    """First row, and rows as they are stored, of every part of a unit that was read."""
    found, row, start = [], unit.start, 0
    for _, offset, num_bytes, rows in unit.parts:
        part = raw[start + offset % ALIGN :][:num_bytes]
        dtype = STORED[matrix.kernel]
        part = part.clone() if part.storage_offset() % dtype.itemsize else part
        found.append((row, part.view(dtype).view(rows, -1)))
        row, start = row + rows, start + span_bytes(num_bytes)
    return found


def _as_matrix(
    format: WeightFormat, stored: Tensor, start: int, codes: Mapping[str, Tensor], cols: int
) -> Tensor | PackedMatrix:
    if not codes:
        return stored
    here = {kind: values[start : start + stored.shape[0]] for kind, values in codes.items()}
    return CodedMatrix(format, {"codes": stored} | here, cols, stored.dtype)


def cache_experts(model: Model, source: TensorSource, plan: StreamPlan, policy: str) -> ExpertCache:
    """The experts of all layers, in a cache. Call when everything else is loaded."""
    rows, reason = model.expert_rows(source)
    assert reason is None, reason
    experts: dict[tuple[int, int], list[StoredRows]] = {}
    params = [matrix for matrix in model.shape.matrices if matrix.role == "experts"]
    for matrix in params:  # gate_up before down, as the table has them
        for expert in range(matrix.count):
            experts.setdefault((layer_of(matrix.name), expert), []).append(rows[matrix.name, expert])
    cache = ExpertCache(experts, source.checkpoint, plan.expert_slots, policy)
    for matrix in params:
        shape = (matrix.count, matrix.rows, matrix.cols)
        model.keep(matrix.name, CachedExperts(cache, layer_of(matrix.name), shape))
    return cache


def layer_of(name: str) -> int:
    """``layers.7.mlp.gate_up`` -> 7."""
    return int(name.split(".")[1])
