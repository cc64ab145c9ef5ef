"""Filling a model that is larger than its room: some matrices are kept, the others stay on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pagoda.weights.built import BuiltMatrix
from pagoda.weights.built_rows import BuiltRows
from pagoda.weights.expert_cache import CachedExperts, ExpertCache
from pagoda.weights.expert_store import ExpertStore
from pagoda.weights.panel_rows import PanelRows
from pagoda.weights.panels_on_disk import PanelsOnDisk
from pagoda.weights.reader import Checkpoint
from pagoda.weights.rows import StoredMatrix
from pagoda.weights.schemes.pagoda import CODE
from pagoda.weights.source import TensorSource
from pagoda.weights.streaming import Rows, StreamedMatrix, WeightStream

from .stream_plan import StreamPlan

if TYPE_CHECKING:
    from pagoda.weights.formats.base import WeightFormat

    from .model import Model

EMBED, HEAD = "embed.weight", "lm_head.weight"


def stream_rest(
    model: Model, source: TensorSource, plan: StreamPlan, rows: Mapping[str, Rows], checkpoint: Checkpoint
) -> WeightStream:
    """The matrices that the plan leaves on disk: ``rows`` of ``checkpoint``, which need not be the source's. The stream
    begins to read at once.
    """
    tied = HEAD not in rows and HEAD not in {m.name for m in model.shape.matrices}
    order = [name for name in rows if name in plan.streamed and name != EMBED]
    if EMBED in plan.streamed:
        order.append(EMBED)  # tied, it is the head: the last of a step
    looked_up = {len(order) - 1} if EMBED in plan.streamed and not tied else set()
    stream = WeightStream([rows[name] for name in order], checkpoint, looked_up)
    for number, name in enumerate(order):
        found = rows[name]
        if isinstance(found, PanelRows):
            beside = {part: checkpoint.read(entry.name) for part, entry in found.beside.items()}
            model.keep(name, PanelsOnDisk(model.dtype, stream, number, beside))
        elif isinstance(found, BuiltRows):
            model.keep(name, BuiltMatrix(model.dtype, stream, number))
        else:
            codes = _codes(source, name)
            model.keep(name, StreamedMatrix(_format(model, name), model.dtype, stream, number, codes))
    return stream


def _format(model: Model, name: str) -> WeightFormat:
    found = model.quantization.of(name, model.shape_role(name))
    assert found is not None, f"{name} has no format"
    return found.read_as


def _codes(source: TensorSource, name: str) -> dict[str, Tensor]:
    """Scales and zero points of a matrix of our own checkpoints; nothing for plain numbers."""
    logical = source.logical.get(f"pagoda.{name}")
    if logical is None or logical.format is None:
        return {}
    kinds = {part.rpartition(CODE)[2]: part for part in logical.parts}
    return {kind: source.checkpoint.read(kinds[kind]) for kind in ("scale", "zero") if kind in kinds}


def cache_experts(model: Model, source: TensorSource, plan: StreamPlan, policy: str) -> ExpertCache:
    """The experts of all layers, in a cache. Call when everything else is loaded."""
    rows, reason = model.expert_rows(source)
    assert reason is None, reason
    experts: dict[tuple[int, int], list[StoredMatrix]] = {}
    params = [matrix for matrix in model.shape.matrices if matrix.role == "experts"]
    for matrix in params:  # gate_up before down, as the table has them
        for expert in range(matrix.count):
            experts.setdefault((layer_of(matrix.name), expert), []).append(rows[matrix.name, expert])
    cache = ExpertCache(ExpertStore(experts, source.checkpoint, model.dtype), plan.cache_bytes, policy)
    for matrix in params:
        shape = (matrix.count, matrix.rows, matrix.cols)
        model.keep(matrix.name, CachedExperts(cache, layer_of(matrix.name), shape))
    return cache


def layer_of(name: str) -> int:
    """``layers.7.mlp.gate_up`` -> 7."""
    return int(name.split(".")[1])
