"""Models made of a model to be priced beside it: ``FORMAT by METHOD``, written as `pagoda quantize` and `prune` do.

int4(group=32) by gptq     codes of that format, chosen by that method
int4 by mixed              formats by parameter, in as many bytes as the named format takes
0.9 by width               a share of the neurons
"""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError, choices
from ..models.load import load_model, quantization_config, read_config
from ..models.mixed import CANDIDATES, mixed
from ..models.prune import empty_model, width_slices, write_pruned
from ..models.quantize import Tokens, quantize_model
from ..models.resolve import resolve
from ..weights.methods import METHODS
from ..weights.quantization import parse_format, parse_quantization
from ..weights.reader import Checkpoint
from ..weights.source import open_source

BY = " by "
USUAL = (
    "int4(group=32)", "int4(embed='same')", "int5(embed='same')", "int5 by gptq", "int4 by gptq",
    "int4(group=32) by awq", "int4(group=32) by hqq", "int4(group=32) by gptq", "int4(group=32) by mixed",
    "int4 by mixed", "int3(rank=0) by mixed", "0.9 by width",
)  # fmt: skip
"""Priced beside all formats when none are named."""


def make(model: str, name: str, calibration: Tokens, out: Path) -> Path:
    """Writes the model that ``name`` says into a folder of ``out``, and returns it.

    Raises ConfigError for a method that does not exist, and what the methods raise.
    """
    what, _, how = name.partition(BY)
    folder = out / name.replace("/", "_")
    if how == "width":
        _narrow(model, _share(name, what), folder)
        return folder
    if how not in (*METHODS, "mixed"):
        raise ConfigError(f"{name}: {choices('method', how, (*METHODS, 'mixed', 'width'))}")
    loaded, quantization = load_model(model, quantization="none"), parse_quantization(what)
    try:
        if how != "mixed":
            quantize_model(loaded, folder, quantization, method=how, calibration=calibration)
            return folder
        budget = loaded.shape.weight_bytes(loaded.dtype, quantization)
        found = mixed(loaded, [parse_format(text) for text in CANDIDATES], budget, calibration)
        quantize_model(loaded, folder, found.quantization, ready=found.codes)
        return folder
    finally:
        loaded.close()


def _share(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}: {text!r} is no share of neurons; give a number like 0.9") from None


def _narrow(model: str, share: float, out: Path) -> None:
    folder = resolve(model)
    config = read_config(folder)
    source = open_source(Checkpoint.open(folder), quantization_config(config))
    neurons, slices = width_slices(folder, empty_model(folder, config), source, share)
    write_pruned(folder, out, source, slices, {**config, "intermediate_size": neurons}, {})
