"""Models whose feed-forward neurons can stay on disk (`neuron_file`), and what is written of them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagoda.core.errors import ConfigError, ModelError

from .config_json import quantization_config
from .families import read_spec
from .spec import DecoderSpec, MLPSpec

SPARSE = ("relu", "relu2")


def spec_to_bundle(folder: Path, config: Mapping[str, Any], rank: int) -> DecoderSpec:
    """Of a model that `neuron_file.bundle` can write, with a predictor of that rank. Raises ModelError, ConfigError
    that say why it cannot.
    """
    if quantization_config(config):
        raise ModelError(f"{folder}: its weights are packed; bundle the original")
    spec = read_spec(config)
    sparse_mlp(spec)
    if not 0 <= rank < spec.hidden_size:
        raise ConfigError(f"rank is {rank}; give 0 (exact) up to {spec.hidden_size - 1}, below the hidden size")
    return spec


def sparse_mlp(spec: DecoderSpec) -> MLPSpec:
    """The feed-forward layers of a model whose neurons can stay on disk. Raises ModelError that says why not."""
    for block in spec.blocks:
        mlp = block.mlp
        if not isinstance(mlp, MLPSpec):
            raise ModelError(
                f"{spec.family}: sparse-ffn is for dense layers; experts of a mixture are read as they are"
            )
        if mlp.act not in SPARSE:
            raise ModelError(
                f"{spec.family}: sparse-ffn needs an activation that leaves neurons at zero ({', '.join(SPARSE)}); "
                f"this model's is {mlp.act}, whose neurons are all active"
            )
        if mlp.inner_norm is not None or mlp != spec.blocks[0].mlp:
            raise ModelError(f"{spec.family}: sparse-ffn needs layers that are alike and have no norm inside")
    first = spec.blocks[0].mlp
    assert isinstance(first, MLPSpec)
    return first


def ffn_params(spec: DecoderSpec, layer: int) -> tuple[str, str]:
    """Our names of a layer's matrices: gate and up, and down."""
    up = "gate_up" if sparse_mlp(spec).gated else "up"
    return f"layers.{layer}.mlp.{up}.weight", f"layers.{layer}.mlp.down.weight"
