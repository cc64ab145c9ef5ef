"""Smaller models of the same form: feed-forward layers with fewer neurons, and vocabularies with fewer tokens.

What is written is a folder in the Hugging Face form with plain weights, so that it runs everywhere, is quantized and
bundled as any other, and can be compared with transformers running the very same weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda.core.errors import ConfigError, ModelError
from pagoda.weights.source import TensorSource
from pagoda.weights.writer import write_stream

from .config_json import quantization_config
from .model import EMBED, HEAD, Model
from .sources import Piece
from .spec import MLPSpec

Slices = Mapping[str, tuple[int, Tensor]]
"""Checkpoint tensor -> dimension and the indices of it that stay."""

WEIGHTS = "model.safetensors"
KEPT = "kept_tokens.json"  # of a cut vocabulary: the ids that its tokens had before


def empty_model(folder: Path, config: Mapping[str, Any]) -> Model:
    """The model that the config describes. Raises ModelError for packed weights."""
    if quantization_config(config):
        raise ModelError(f"{folder}: its weights are packed; prune the original, and quantize what comes of it")
    return Model.from_config(config, dtype=torch.float32)


def width_slices(
    folder: Path, model: Model, source: TensorSource, share: float
) -> tuple[int, dict[str, tuple[int, Tensor]]]:
    """The new width, and what stays of every tensor, with ``share`` of the neurons of each layer kept.

    Those stay whose weights are largest: the maximum absolute weight of a neuron's row of gate plus that of its row of
    up (MAW, https://arxiv.org/abs/2512.22671, 3). Data is not looked at. Raises ModelError, ConfigError.
    """
    spec = model.spec.blocks[0].mlp
    plain = isinstance(spec, MLPSpec) and spec.gated and spec.inner_norm is None
    if not isinstance(spec, MLPSpec) or not plain or any(block.mlp != spec for block in model.spec.blocks):
        raise ModelError(
            f"{folder}: width pruning is for dense gated layers (GLU) that are all alike and have no norm inside"
        )
    width = round(spec.inner * share)
    if not 0 < share < 1 or not 0 < width < spec.inner:
        raise ConfigError(f"width {share:g} keeps {width} of {spec.inner} neurons; give a share between 0 and 1")
    scores = {i: torch.zeros(spec.inner) for i in range(len(model.spec.blocks))}
    places: dict[str, Piece] = {}
    for name in source.names:
        for piece in model.pieces(name):
            if ".mlp." in piece.param:
                if not piece.is_rows or len(model.pieces(name)) > 1:
                    raise ModelError(f"{folder}: tensor {name!r} is rearranged when it is read; it cannot be cut")
                places[name] = piece
    gates = [name for name, piece in places.items() if piece.param.endswith("gate_up.weight")]
    for part in source.stream(gates):
        assert isinstance(part.tensor, Tensor)
        largest = part.tensor.float().abs().amax(1)
        layer = int(places[part.name].param.split(".")[1])
        for start in range(0, len(largest), spec.inner):  # gate or up, or both in one
            scores[layer] += largest[start : start + spec.inner]
    kept = {i: score.argsort(descending=True, stable=True)[:width].sort().values for i, score in scores.items()}
    found: dict[str, tuple[int, Tensor]] = {}
    for name, piece in places.items():
        keep = kept[int(piece.param.split(".")[1])]
        if piece.param.endswith("down.weight"):
            found[name] = (1, keep)
        elif ".gate_up." in piece.param:
            rows = source.checkpoint.entries[name].shape[0]
            found[name] = (0, torch.cat([keep + start for start in range(0, rows, spec.inner)]))
    return width, found


def vocabulary_slices(model: Model, source: TensorSource, kept: list[int]) -> dict[str, tuple[int, Tensor]]:
    """What stays of embedding and head with the tokens ``kept``, in the order of their ids."""
    rows = torch.tensor(kept)
    names = (EMBED, HEAD, "lm_head.bias")
    return {name: (0, rows) for name in source.names if any(piece.param in names for piece in model.pieces(name))}


def write_pruned(
    folder: Path, out: Path, source: TensorSource, slices: Slices, config: Mapping[str, Any], files: Mapping[str, Any]
) -> int:
    """The folder ``out``: cut weights, ``config``, ``files`` (JSON by name) and all other small files as they are.

    One tensor is in memory at a time. Returns the bytes of the weights. Raises ModelError if ``out`` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: is not empty; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and "safetensors" not in file.name:
            shutil.copyfile(file, out / file.name)
    for name, data in (("config.json", config), *files.items()):
        (out / name).write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    entries = [(name, e.dtype, _cut_shape(name, e.shape, slices)) for name, e in source.checkpoint.entries.items()]
    names = [name for name, *_ in entries]
    write_stream(out / WEIGHTS, entries, _cut(source, names, slices))  # last: a folder with weights is a complete one
    return (out / WEIGHTS).stat().st_size


def _cut_shape(name: str, shape: tuple[int, ...], slices: Slices) -> tuple[int, ...]:
    if name not in slices:
        return shape
    dim, keep = slices[name]
    return (*shape[:dim], len(keep), *shape[dim + 1 :])


def _cut(source: TensorSource, names: list[str], slices: Slices) -> Iterator[Tensor]:
    for part in source.stream(names):
        assert isinstance(part.tensor, Tensor)
        dim, keep = slices.get(part.name, (0, None))
        yield part.tensor if keep is None else part.tensor.index_select(dim, keep)
