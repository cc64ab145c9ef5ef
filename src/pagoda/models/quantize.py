"""A model's checkpoint in weight formats, with codes chosen by a calibrated method, written to a folder of its own.

Reads the model unpacked, watches what its linear layers are fed on calibration tokens, chooses codes matrix by matrix,
and writes them under our parameter names (`weights/schemes/pagoda.py` reads them back).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from pagoda.core.errors import ConfigError, ModelError, choices
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.methods import CALIBRATED, METHODS, InputStats
from pagoda.weights.packed import PackedMatrix
from pagoda.weights.quantization import Quantization, format_text
from pagoda.weights.schemes import pagoda as stored
from pagoda.weights.writer import write_tensors

from .decoder import Decoder
from .load import Loaded
from .model import Model

Tokens = Sequence[Sequence[int]]
Progress = Callable[[int, int], None]
Codes = dict[str, Tensor]
WEIGHTS = "model.safetensors"
GRAM_BYTES = 1 << 30  # of input statistics held at a time; more layers take more passes over the calibration text


@dataclass(slots=True)
class Chosen:
    """What became of one parameter: format (None: as it was), bytes, and the error of its outputs where measured."""

    format: WeightFormat | None
    num_bytes: int
    relative_error: float = 0.0


@dataclass(slots=True)
class Report:
    """What was written: parameters by name, bytes of all weights before (in the model's dtype) and after."""

    method: str
    params: dict[str, Chosen] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0


def quantize_model(
    loaded: Loaded,
    out: Path,
    quantization: Quantization,
    *,
    method: str = "rtn",
    calibration: Tokens = (),
    ready: Mapping[str, Codes] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes ``loaded`` (unpacked weights) to the folder ``out`` in the formats of ``quantization``.

    ``ready``: codes of parameters for which they are chosen already.
    Raises ConfigError for a method that does not exist or does not know a format, ModelError for a model that runs
    through transformers, or a folder that is not empty.
    """
    if method not in METHODS:
        raise ConfigError(choices("method", method, METHODS))
    model = plain_model(loaded)
    if method in CALIBRATED and not any(len(part) > 1 for part in calibration):
        raise ConfigError(f"method {method!r} needs calibration text")
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: is not empty; give a new folder")
    report = Report(method, bytes_before=model.weight_bytes)
    tensors: dict[str, Tensor] = {}
    watched, chosen = calibration if method in CALIBRATED else (), ready or {}
    formats: dict[str, str] = {}
    for done, (name, weight, stats) in enumerate(with_stats(model, watched)):
        role = model.shape_role(name)
        format = quantization.of(name, role)
        how = method if role == "linear" else "rtn"
        report.params[name] = _add(tensors, name, weight, format, how, stats, chosen.get(name))
        if format is not None:
            formats[name] = format_text(format)
        if progress is not None:
            progress(done + 1, len(model.weights()))
    report.bytes_after = sum(chosen.num_bytes for chosen in report.params.values())
    write_folder(loaded, out, tensors, formats, method)
    return report


def plain_model(loaded: Loaded) -> Model:
    """The native model with plain tensors. Raises ModelError for another."""
    if not isinstance(loaded.model, Model):
        raise ModelError(
            f"{loaded.path}: {loaded.shape.family} runs through transformers, whose weights stay as they are"
        )
    if not loaded.quantization.is_plain:
        raise ModelError(f"{loaded.path}: load it with quantization='none' to quantize it anew")
    return loaded.model


def _add(
    tensors: dict[str, Tensor],
    name: str,
    weight: Tensor,
    format: WeightFormat | None,
    method: str,
    stats: InputStats | None,
    ready: Codes | None,
) -> Chosen:
    """Puts the tensors of one parameter among those to be written."""
    if format is None:
        tensors[stored.PREFIX + name] = weight.contiguous()
        return Chosen(None, weight.nbytes)
    chosen = Chosen(format, 0)
    lost = total = 0.0
    for expert, matrix in enumerate(weight) if weight.dim() == 3 else [(-1, weight)]:
        codes = METHODS[method](matrix.float(), format, stats) if ready is None else ready
        at = stored.PREFIX + name + (f"{stored.EXPERT}{expert}" if expert >= 0 else "")
        tensors |= {f"{at}{stored.CODE}{kind}": t.contiguous() for kind, t in codes.items()}
        tensors[f"{at}{stored.CODE}size"] = torch.tensor(matrix.shape)
        back = format.dequantize(codes, matrix.shape[1])
        lost, total = lost + float((back - matrix.float()).square().sum()), total + float(matrix.float().square().sum())
        chosen.num_bytes += format.num_bytes(*matrix.shape)
    chosen.relative_error = (lost / total) ** 0.5 if total else 0.0
    return chosen


def write_folder(
    loaded: Loaded, out: Path, tensors: Mapping[str, Tensor], formats: Mapping[str, str], method: str
) -> None:
    """Weights, config with ``quantization_config``, and every other small file of the model's folder."""
    out.mkdir(parents=True, exist_ok=True)
    for file in loaded.path.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and "safetensors" not in file.name:
            shutil.copyfile(file, out / file.name)
    config = {key: value for key, value in loaded.config.items() if key != "quantization_config"}
    config["quantization_config"] = {
        "quant_method": "pagoda", "version": stored.VERSION, "method": method, "formats": dict(formats),
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2))
    write_tensors(out / WEIGHTS, tensors)  # last: a folder with weights is a complete one


# --- calibration


class _Watched(PackedMatrix):
    """A plain matrix that remembers what it was multiplied with."""

    __slots__ = ("stats", "weight")

    def __init__(self, weight: Tensor) -> None:
        super().__init__(None, weight.dtype)  # type: ignore[arg-type]
        self.weight, self.stats = weight, InputStats.empty(weight.shape[1])

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def dense(self) -> Tensor:
        return self.weight

    def rows(self, ids: Tensor) -> Tensor:
        return self.weight[ids]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        self.stats.add(x)
        return linear(x, self.weight, bias)


def with_stats(model: Model, calibration: Tokens) -> Iterator[tuple[str, Tensor, InputStats | None]]:
    """Every parameter, linear layers with what they were fed; a pass over the text for every gibibyte of statistics."""
    waiting: list[str] = []
    held = 0
    names = list(model.weights())
    for at, name in enumerate(names):
        waiting.append(name)
        if calibration and model.shape_role(name) == "linear":
            held += model.weights()[name].shape[1] ** 2 * 4
        if held >= GRAM_BYTES or at + 1 == len(names):
            stats = _watch(model, waiting, calibration) if calibration else {}
            for param in waiting:
                yield param, model.weights()[param], stats.get(param)
            waiting, held = [], 0


def _watch(model: Model, names: list[str], calibration: Tokens) -> dict[str, InputStats]:
    watched = {n: _Watched(model.weights()[n]) for n in names if model.shape_role(n) == "linear"}
    decoder = Decoder(model.spec, {**model.weights(), **watched}, rope_length=model.rope_length)
    run(decoder, calibration, with_logits=False)
    return {name: matrix.stats for name, matrix in watched.items()}


def run(decoder: Decoder, texts: Tokens, *, with_logits: bool = True) -> list[Tensor]:
    """Logits float32 ``[tokens, vocab]`` of every text, each by itself."""
    found = []
    with torch.inference_mode():
        for tokens in texts:
            view = DenseView(DenseCache(), [0], [len(tokens)])
            hidden = decoder.forward(torch.tensor(list(tokens)), torch.arange(len(tokens)), view)
            if with_logits:
                found.append(decoder.logits(hidden))
    return found


def kl(exact: list[Tensor], other: list[Tensor]) -> float:
    """Mean KL divergence of ``other`` from ``exact``, nats per token."""
    total = count = 0.0
    for p, q in zip(exact, other, strict=True):
        logp, logq = p.log_softmax(-1), q.log_softmax(-1)
        total += float((logp.exp() * (logp - logq)).sum())
        count += p.shape[0]
    return total / max(1.0, count)


def info(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "method": report.method,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "parameters": {
            name: {"format": format_text(c.format), "bytes": c.num_bytes, "relative_error": c.relative_error}
            for name, c in report.params.items()
            if c.format is not None
        },
    }
