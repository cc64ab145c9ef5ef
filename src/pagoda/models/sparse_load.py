"""Filling a model whose feed-forward neurons stay on disk (`neuron_file`): everything else, and what decides."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from pagoda.core.errors import ConfigError
from pagoda.weights.filling import new_filling
from pagoda.weights.neurons import NeuronCache, cache_bytes
from pagoda.weights.packed import PackedMatrix
from pagoda.weights.reader import Checkpoint
from pagoda.weights.source import TensorSource

from .layers.sparse_mlp import InRows, Predictor, SparseNeurons
from .model import Model
from .neuron_file import decider_names, open_bundle
from .sparse_ffn import ffn_params, sparse_mlp
from .stream_plan import StreamPlan

MIN_SLOTS = 16  # neurons of a layer that are multiplied at once


def plan_neurons(folder: Path, model: Model, source: TensorSource, dtype: str, room_bytes: int) -> StreamPlan:
    """As many neurons of every layer in memory as fit ``room_bytes``. Raises ModelError, WeightsError, ConfigError."""
    spec, layers = sparse_mlp(model.spec), range(len(model.spec.blocks))
    bundle = open_bundle(folder, source, model, dtype)
    names = tuple(name for i in layers for name in ffn_params(model.spec, i))
    matrices = [m for m in model.shape.matrices if m.name in names]
    packing, size = model.quantization, model.dtype.itemsize
    resident = model.shape.weight_bytes(dtype, packing)
    for matrix in matrices:
        found = packing.of(matrix.name, matrix.role)
        if found is not None and found.name not in ("fp32", "bf16", "bf12"):
            raise ConfigError(f"weights='sparse-ffn' reads plain neurons, not {found.name}; leave quantization out")
        plain = matrix.rows * matrix.cols * size
        resident -= plain if found is None else found.num_bytes(matrix.rows, matrix.cols)
    resident += sum(bundle.entries[n].num_bytes for i in layers for n in decider_names(i, _predicted(bundle)))
    rows = [bundle.entries[f"layers.{i}.rows"].num_bytes // spec.inner for i in layers]
    least = cache_bytes(rows, 0)
    slots = (room_bytes - resident - least) // (cache_bytes(rows, 1) - least)
    slots = min(spec.inner, max(min(MIN_SLOTS, spec.inner), slots))
    step = sum(bundle.entries[f"layers.{i}.rows"].num_bytes for i in layers)
    return StreamPlan(
        names, resident, cache_bytes(rows, slots), step, neuron_slots=slots, num_neurons=spec.inner, bundle=bundle
    )


def keep_neurons(model: Model, plan: StreamPlan) -> NeuronCache:
    """A cache, and what stands for it in every layer. Call when everything else is loaded."""
    bundle, spec = plan.bundle, sparse_mlp(model.spec)
    assert bundle is not None
    layers = range(len(model.spec.blocks))
    cache = NeuronCache(bundle, [bundle.entries[f"layers.{i}.rows"] for i in layers], plan.neuron_slots)
    try:
        for i in layers:
            up, down = ffn_params(model.spec, i)
            rows = spec.inner * (2 if spec.gated else 1)
            shape = (rows, model.spec.hidden_size)
            neurons = SparseNeurons(cache, i, _decider(model, bundle, i), gated=spec.gated, kind=spec.act, shape=shape)
            model.keep(up, neurons)
            model.keep(down, InRows())
    except BaseException:
        cache.close()
        raise
    return cache


def _predicted(bundle: Checkpoint) -> bool:
    return "layers.0.decider" not in bundle.entries


def _decider(model: Model, bundle: Checkpoint, layer: int) -> Tensor | PackedMatrix | Predictor:
    if _predicted(bundle):
        return Predictor(*(bundle.read(name) for name in decider_names(layer, True)))
    weight = bundle.read(f"layers.{layer}.decider")
    format = model.quantization.of(ffn_params(model.spec, layer)[0], "linear")
    if format is None:
        return weight
    filling = new_filling(format, *weight.shape, dtype=model.dtype)
    filling.put(0, weight)
    return filling.finish(model.dtype)
