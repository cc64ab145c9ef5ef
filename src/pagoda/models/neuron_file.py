"""`pagoda bundle`: the feed-forward neurons of a ReLU model, written so that one read brings all weights of one.

neurons.bundle, in the model's folder (a safetensors file, its rows on whole pages where their size allows)
layers.<i>.rows      [neurons, width]   parts of a neuron side by side, as `layers.sparse_mlp` draws them
layers.<i>.decider   [neurons, hidden]  gate, or up where there is none: read into memory whole
layers.<i>.inner, .outer, .bias         in its stead, a low-rank predictor
fingerprint          of the checkpoint that it was made from
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda.core.errors import ConfigError, ModelError, WeightsError
from pagoda.weights.header import read_header
from pagoda.weights.methods import InputStats
from pagoda.weights.reader import Checkpoint
from pagoda.weights.source import TensorSource
from pagoda.weights.writer import write_stream

from .dtype_choice import choose_dtype
from .fingerprint import fingerprint
from .load import Loaded
from .model import Model
from .quantize import Tokens, with_stats
from .sparse_ffn import ffn_params, sparse_mlp, spec_to_bundle
from .spec import DecoderSpec

FILE = "neurons.bundle"
STORED = {"float32": "F32", "bfloat16": "BF16"}


def bundle(
    folder: Path, config: Mapping[str, Any], source: TensorSource, *, dtype: str = "auto", rank: int = 0,
    loaded: Loaded | None = None, calibration: Tokens = (), margin: float = 1.0,
) -> dict[str, Any]:  # fmt: skip
    """Writes `FILE` into a model's folder, layer by layer. Returns what was written, as plain data.

    ``rank`` 0 is exact: what decides stays in memory. Otherwise a predictor of that rank is fitted to what the layers
    of ``loaded`` are fed on ``calibration``; ``margin`` is how many standard deviations of its error it allows for.
    Raises ModelError, WeightsError, ConfigError.
    """
    hidden = spec_to_bundle(folder, config, rank).hidden_size
    name, _ = choose_dtype(dtype, config, source.checkpoint, torch.device("cpu"))
    if name not in STORED:
        raise ConfigError(f"neurons are read as float32 or bfloat16, not {name}; give --dtype bfloat16")
    model = Model.from_config(config, dtype=getattr(torch, name))
    spec = sparse_mlp(model.spec)
    if rank and loaded is None:
        raise ConfigError("a predictor needs the model and calibration text")
    parts = (1 + spec.gated) + (1 if rank else 0)
    layers = range(len(model.spec.blocks))
    entries: list[tuple[str, str, tuple[int, ...]]] = []
    deciders: list[tuple[str, str, tuple[int, ...]]] = []
    for i in layers:
        entries.append((f"layers.{i}.rows", STORED[name], (spec.inner, parts * hidden)))
        if rank:
            shapes = {"inner": (rank, hidden), "outer": (spec.inner, rank), "bias": (spec.inner,)}
            deciders += [(f"layers.{i}.{part}", STORED[name], shape) for part, shape in shapes.items()]
        else:
            deciders.append((f"layers.{i}.decider", STORED[name], (spec.inner, hidden)))
    entries += [*deciders, ("fingerprint", "U8", (32,))]
    stats = _stats(loaded, calibration, model.spec) if loaded is not None and rank else {}
    write_stream(folder / FILE, entries, _tensors(model, source, rank, stats, margin))
    found = {"file": str(folder / FILE), "layers": len(layers), "neurons": spec.inner, "rank": rank, "dtype": name}
    return found | {"row_bytes": parts * hidden * getattr(torch, name).itemsize}


def _tensors(
    model: Model, source: TensorSource, rank: int, stats: Mapping[str, InputStats], margin: float
) -> Iterator[Tensor]:
    """Rows of all layers first, so that they begin on whole pages, and then, read again, what decides."""
    layers = range(len(model.spec.blocks))
    for i in layers:
        gate, up, down = _matrices(model, source, i)
        inside = [m for m in (gate, up) if m is not None] if rank else [up] if gate is not None else []
        yield torch.cat([*inside, down.T], dim=1)
    for i in layers:
        gate, up, _ = _matrices(model, source, i)
        weight = up if gate is None else gate
        if rank:
            param = ffn_params(model.spec, i)[0]
            yield from _predictor(weight, _gate_bias(model, source, i), stats[param], rank, margin)
        else:
            yield weight
    digest = fingerprint(source.checkpoint, {})
    yield torch.tensor(list(digest.encode()), dtype=torch.uint8)


def _matrices(model: Model, source: TensorSource, layer: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """(gate, up, down) of a layer, in the model's dtype; nothing else of the model is read."""
    spec, params = sparse_mlp(model.spec), ffn_params(model.spec, layer)
    both, down = (_read(model, source, param) for param in params)
    gate, up = both.split(spec.inner) if spec.gated else (None, both)
    return gate, up, down


def _read(model: Model, source: TensorSource, param: str) -> Tensor:
    names = [name for name in source.names if model.fills_only(name, {param})]
    for part in source.stream(names):
        model.load_tensor(part.name, part.tensor)
    try:
        found = model.take(param)
    except KeyError:
        raise WeightsError(f"{source.checkpoint.folder}: no tensor fills {param}") from None
    if not torch.isfinite(found).all():
        raise WeightsError(f"{source.checkpoint.folder}: {param} has values that are not finite")
    return found


def _gate_bias(model: Model, source: TensorSource, layer: int) -> Tensor | None:
    spec = sparse_mlp(model.spec)
    if not spec.bias:
        return None
    return _read(model, source, ffn_params(model.spec, layer)[0].replace(".weight", ".bias"))[: spec.inner]


def _stats(loaded: Loaded, calibration: Tokens, spec: DecoderSpec) -> dict[str, InputStats]:
    if not any(len(part) > 1 for part in calibration):
        raise ConfigError("a predictor needs calibration text")
    assert isinstance(loaded.model, Model)
    wanted = {ffn_params(spec, i)[0] for i in range(len(spec.blocks))}
    return {name: s for name, _, s in with_stats(loaded.model, calibration) if name in wanted and s is not None}


def _predictor(
    weight: Tensor, bias: Tensor | None, stats: InputStats, rank: int, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximation of ``weight @ x`` of so low a rank for the inputs that were seen, and a bias that lets
    through whatever may be above zero within ``margin`` standard deviations of its error.

    The paper trains its predictors by gradient descent on 10,000 samples; this is the least-squares answer.
    """
    gram = stats.gram / max(1, stats.count)
    gram += torch.eye(len(gram)) * (1e-4 * gram.diagonal().mean())
    values, vectors = torch.linalg.eigh(gram)
    root, inverse = (vectors * values.clamp_min(0).sqrt(), vectors / values.clamp_min(1e-12).sqrt())
    u, s, v = torch.linalg.svd(weight.float() @ root, full_matrices=False)
    outer, inner = u[:, :rank] * s[:rank], v[:rank] @ inverse.T
    spread = (u[:, rank:] * s[rank:]).square().sum(1).sqrt()
    shift = margin * spread + (0 if bias is None else bias.float())
    return inner.to(weight.dtype), outer.to(weight.dtype), shift.to(weight.dtype)


def open_bundle(folder: Path, source: TensorSource, model: Model, dtype: str) -> Checkpoint:
    """The bundle of a model's folder. Raises ModelError or WeightsError: there is none, it is another's or damaged."""
    file, spec, hidden = folder / FILE, sparse_mlp(model.spec), model.spec.hidden_size
    if not file.is_file():
        raise ModelError(f"{folder}: no {FILE}; `pagoda bundle` writes it, neuron by neuron, for weights='sparse-ffn'")
    found = Checkpoint(folder, read_header(file))
    if "fingerprint" not in found.entries or bytes(found.read("fingerprint").tolist()).decode("ascii", "replace") != (
        fingerprint(source.checkpoint, {})
    ):
        raise WeightsError(f"{file}: was made from other weights than those beside it; run `pagoda bundle` again")
    for i in range(len(model.spec.blocks)):
        rows = found.entries.get(f"layers.{i}.rows")
        if rows is None or rows.shape[0] != spec.inner or rows.shape[1] % hidden:
            raise WeightsError(f"{file}: tensor 'layers.{i}.rows' is missing or of another shape; bundle it again")
        if rows.dtype != STORED.get(dtype):
            raise WeightsError(f"{file}: holds {rows.dtype}, the model runs in {dtype}; bundle with --dtype {dtype}")
    return found


def decider_names(layer: int, predicted: bool) -> Sequence[str]:
    """Tensors of a bundle that are read into memory whole."""
    kinds = ("inner", "outer", "bias") if predicted else ("decider",)
    return [f"layers.{layer}.{kind}" for kind in kinds]
