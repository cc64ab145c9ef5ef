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
from pagoda.weights.methods import CALIBRATED, METHODS, InputStats, rtn
from pagoda.weights.packed import CodedMatrix, PackedMatrix
from pagoda.weights.quantization import Quantization, format_text
from pagoda.weights.schemes import pagoda as stored
from pagoda.weights.writer import write_tensors

from .decoder import Decoder
from .load import Loaded
from .model import Model

Tokens = Sequence[Sequence[int]]
Progress = Callable[[int, int], None]
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
    progress: Progress | None = None,
) -> Report:
    """Writes ``loaded`` (unpacked weights) to the folder ``out`` in the formats of ``quantization``.

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
    watched = calibration if method in CALIBRATED else ()
    formats: dict[str, str] = {}
    for done, (name, weight, stats) in enumerate(with_stats(model, watched)):
        role = model.shape_role(name)
        format = quantization.of(name, role)
        report.params[name] = _add(tensors, name, weight, format, method if role == "linear" else "rtn", stats)
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
) -> Chosen:
    """Puts the tensors of one parameter among those to be written."""
    if format is None:
        tensors[stored.PREFIX + name] = weight.contiguous()
        return Chosen(None, weight.nbytes)
    chosen = Chosen(format, 0)
    lost = total = 0.0
    for expert, matrix in enumerate(weight) if weight.dim() == 3 else [(-1, weight)]:
        codes = METHODS[method](matrix.float(), format, stats)
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


# --- mixed precision

CANDIDATES = ("int8", "int4(group=32)", "int4", "int3(rank=0)", "int2(rank=8)")


def mixed(
    loaded: Loaded,
    candidates: Sequence[WeightFormat],
    budget_bytes: int,
    calibration: Tokens,
    progress: Progress | None = None,
) -> Quantization:
    """Formats by parameter under a byte budget, by the measured harm of each (after OHQ, arXiv:2309.01945, 3.2).

    Every matrix is packed alone in every candidate and the model's distribution on the calibration text compared with
    the exact one (KL divergence, nats per token). Then bytes go where they save most of it: all begin in the format of
    fewest bytes, and the step that lowers the sum most per byte is taken as long as it fits.
    Raises ConfigError for a budget below the smallest.
    """
    model = plain_model(loaded)
    names = [m.name for m in model.shape.matrices if m.role in ("linear", "embed")]
    exact = run(Decoder(model.spec, model.weights(), rope_length=model.rope_length), calibration)
    sizes = {m.name: [f.num_bytes(m.rows, m.cols) * m.count for f in candidates] for m in model.shape.matrices}
    harm: dict[str, list[float]] = {}
    for done, name in enumerate(names):
        harm[name] = [_harm(model, name, format, exact, calibration) for format in candidates]
        if progress is not None:
            progress(done + 1, len(names))
    fixed = model.weight_bytes - sum(model.weights()[name].nbytes for name in names)
    levels = allocate(harm, {name: sizes[name] for name in names}, budget_bytes - fixed)
    return Quantization(overrides={name: candidates[level] for name, level in levels.items()})


def allocate(
    harm: Mapping[str, Sequence[float]], sizes: Mapping[str, Sequence[int]], budget_bytes: int
) -> dict[str, int]:
    """The level of every name that keeps the sum of harm low within the bytes. Raises ConfigError if none fits."""
    levels = {name: _smallest(sizes[name], harm[name]) for name in sizes}
    left = budget_bytes - sum(sizes[name][level] for name, level in levels.items())
    if left < 0:
        raise ConfigError(f"the budget is {-left} bytes below the smallest model of these formats")
    while True:
        steps = [
            ((harm[n][now] - harm[n][to]) / max(1, sizes[n][to] - sizes[n][now]), n, to)
            for n, now in levels.items()
            for to in range(len(sizes[n]))
            if harm[n][to] < harm[n][now] and sizes[n][to] - sizes[n][now] <= left
        ]
        if not steps:
            return levels
        _, name, to = max(steps)
        left -= sizes[name][to] - sizes[name][levels[name]]
        levels[name] = to


def _smallest(sizes: Sequence[int], harm: Sequence[float]) -> int:
    return min(range(len(sizes)), key=lambda level: (sizes[level], harm[level]))


def _harm(model: Model, name: str, format: WeightFormat, exact: list[Tensor], calibration: Tokens) -> float:
    weight = model.weights()[name]
    codes = rtn(weight.float(), format, None)
    packed = CodedMatrix(format, codes, weight.shape[1], weight.dtype)
    changed = {**model.weights(), name: packed.dense()}
    return kl(exact, run(Decoder(model.spec, changed, rope_length=model.rope_length), calibration))


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
