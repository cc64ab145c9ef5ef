"""Models made of a model to be priced beside it: ``FORMAT by METHOD``, written as `pagoda quantize` and `prune` do.

int4(group=32) by gptq     codes of that format, chosen by that method
int4 by distill            codes and scales trained on the whole model
int4 by mixed              formats by parameter, in as many bytes as the named format takes
int4 by mixed+distill      the same, its codes and scales trained
0.9 by width               a share of the neurons
"""

from __future__ import annotations

from pathlib import Path

from ..models.config_json import quantization_config, read_config
from ..models.distill import distill
from ..models.load import load_model
from ..models.mixed import CANDIDATES, mixed
from ..models.prune import empty_model, width_slices, write_pruned
from ..models.quantize import Tokens, quantize_model
from ..models.resolve import resolve
from ..weights.method_names import BY_MATRIX, TRAINED
from ..weights.quantization import parse_format, parse_quantization
from ..weights.reader import Checkpoint
from ..weights.source import open_source
from .weights_names import BY, check_name, share_of


def make(model: str, name: str, calibration: Tokens, out: Path) -> Path:
    """Writes the model that ``name`` says into a folder of ``out``, and returns it.

    Raises ConfigError for a method that does not exist, and what the methods raise.
    """
    check_name(name)
    what, _, how = name.partition(BY)
    folder = out / name.replace("/", "_")
    if how == "width":
        _narrow(model, share_of(name), folder)
        return folder
    loaded, quantization, ready = load_model(model, quantization="none"), parse_quantization(what), None
    try:
        if how not in BY_MATRIX and how != "distill":
            budget = loaded.shape.weight_bytes(loaded.dtype, quantization)
            found = mixed(loaded, [parse_format(text) for text in CANDIDATES], budget, calibration)
            quantization, ready = found.quantization, found.codes
        if how in TRAINED:
            ready = distill(loaded, quantization, calibration, start=ready)
        by = how if how in BY_MATRIX else "rtn"
        quantize_model(loaded, folder, quantization, method=by, calibration=calibration, ready=ready, called=how)
        return folder
    finally:
        loaded.close()


def _narrow(model: str, share: float, out: Path) -> None:
    folder = resolve(model)
    config = read_config(folder)
    source = open_source(Checkpoint.open(folder), quantization_config(config))
    neurons, slices = width_slices(folder, empty_model(folder, config), source, share)
    write_pruned(folder, out, source, slices, {**config, "intermediate_size": neurons}, {})
