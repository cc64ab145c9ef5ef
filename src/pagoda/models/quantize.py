"""A model's checkpoint in weight formats, with codes chosen by a calibrated method, written to a folder of its own.

Reads the model unpacked, watches what its linear layers are fed on calibration tokens, chooses codes matrix by matrix,
and writes them under our parameter names (`weights/schemes/pagoda.py` reads them back).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
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
from pagoda.weights.method_names import CALIBRATED
from pagoda.weights.methods import METHODS, InputStats
from pagoda.weights.packed import PackedMatrix
from pagoda.weights.quantization import EXPERT, Quantization, Role, format_text
from pagoda.weights.reader import dtype_name
from pagoda.weights.schemes import pagoda as stored
from pagoda.weights.writer import write_stream

from .decoder import Decoder
from .load import Loaded
from .model import Model

Tokens = Sequence[Sequence[int]]
Progress = Callable[[int, int], None]
Codes = dict[str, Tensor]
WEIGHTS = "model.safetensors"
PACKED_ALREADY = "{}: a GGUF file is packed already; quantize its checkpoint in safetensors"
GRAM_BYTES = 1 << 30  # of input statistics held at a time; more layers take more passes over the calibration text


@dataclass(slots=True)
class Chosen:
    """What became of one parameter: formats of its matrices and how many have each (None: as it was), bytes, and
    how far its numbers moved, beside their size.
    """

    formats: Mapping[WeightFormat | None, int]
    num_bytes: int
    relative_error: float = 0.0

    def __str__(self) -> str:
        if len(self.formats) == 1:
            return format_text(next(iter(self.formats)))
        return " + ".join(f"{count} {format_text(format)}" for format, count in self.formats.items())


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
    called: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes ``loaded`` (unpacked weights) to the folder ``out`` in the formats of ``quantization``.

    ``ready``: codes of parameters for which they are chosen already, by the method that the folder says it is
    ``called``. Experts are rounded to the nearest.
    Raises ConfigError for a method that does not exist or does not know a format, ModelError for a model that runs
    through transformers, or a folder that is not empty.
    """
    if method not in METHODS:
        raise ConfigError(choices("method", method, METHODS))
    model = plain_model(loaded)
    if method in CALIBRATED and not any(len(part) > 1 for part in calibration):
        raise ConfigError(f"method {method!r} needs calibration text")
    check_new(out)
    report = Report(called or method, bytes_before=model.weight_bytes)
    tensors: dict[str, Tensor] = {}
    watched, chosen = calibration if method in CALIBRATED else (), ready or {}
    formats: dict[str, str] = {}
    for done, (name, weight, stats) in enumerate(with_stats(model, watched)):
        role = model.shape_role(name)
        how = method if role == "linear" else "rtn"
        each = {
            f"{name}{EXPERT}{expert}" if expert >= 0 else name: (matrix, quantization.of(name, role, expert))
            for expert, matrix in (enumerate(weight) if role == "experts" else [(-1, weight)])
        }
        kinds = Counter(format for _, format in each.values())
        if set(kinds) == {None}:
            tensors[stored.PREFIX + name] = weight.contiguous()
            report.params[name] = Chosen(kinds, weight.nbytes)
        else:
            report.params[name] = _add(tensors, each, kinds, how, stats, chosen.get(name))
            found = {own: format_text(format) for own, (_, format) in each.items()}
            formats |= found if len(kinds) > 1 else {name: next(iter(found.values()))}
        if progress is not None:
            progress(done + 1, len(model.weights()))
    report.bytes_after = sum(chosen.num_bytes for chosen in report.params.values())
    write_folder(loaded, out, tensors, formats, report.method)
    return report


def check_new(out: Path) -> None:
    """Raises ModelError for a folder that is not empty."""
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: is not empty; give a new folder")


def plain_model(loaded: Loaded) -> Model:
    """The native model with plain tensors, of a folder. Raises ModelError for another."""
    if loaded.path.is_file():
        raise ModelError(PACKED_ALREADY.format(loaded.path))
    if not isinstance(loaded.model, Model):
        raise ModelError(
            f"{loaded.path}: {loaded.shape.family} runs through transformers, whose weights stay as they are"
        )
    if not loaded.quantization.is_plain:
        raise ModelError(f"{loaded.path}: load it with quantization='none' to quantize it anew")
    return loaded.model


def _add(
    tensors: dict[str, Tensor],
    matrices: Mapping[str, tuple[Tensor, WeightFormat | None]],
    kinds: Mapping[WeightFormat | None, int],
    method: str,
    stats: InputStats | None,
    ready: Codes | None,
) -> Chosen:
    """Puts the codes of one parameter's matrices among the tensors to be written."""
    chosen = Chosen(kinds, 0)
    lost = total = 0.0
    for own, (matrix, format) in matrices.items():
        assert format is not None, f"{own}: the others of its stack are packed"
        codes = METHODS[method](matrix.float(), format, stats) if ready is None else ready
        at = stored.PREFIX + own + stored.CODE
        tensors |= {at + kind: t.contiguous() for kind, t in codes.items()}
        tensors[f"{at}size"] = torch.tensor(matrix.shape)
        back = format.dequantize(codes, matrix.shape[1])
        lost, total = lost + float((back - matrix.float()).square().sum()), total + float(matrix.float().square().sum())
        chosen.num_bytes += format.num_bytes(*matrix.shape)
    chosen.relative_error = (lost / total) ** 0.5 if total else 0.0
    return chosen


def write_folder(
    loaded: Loaded, out: Path, tensors: Mapping[str, Tensor], formats: Mapping[str, str], method: str
) -> None:
    """Weights, config with ``quantization_config``, and every other small file of the model's folder."""
    write_description(loaded.path, loaded.config, out, formats, method)
    # Last: a folder with weights is a complete one. In this order, so that a matrix is read with its scales at once.
    entries = [(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()]
    write_stream(out / WEIGHTS, entries, tensors.values())


def write_description(
    folder: Path, config: Mapping[str, Any], out: Path, formats: Mapping[str, str], method: str
) -> None:
    """All but the weights: config with ``quantization_config``, and every other small file of the model's folder."""
    out.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and "safetensors" not in file.name:
            shutil.copyfile(file, out / file.name)
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    config["quantization_config"] = {
        "quant_method": "pagoda", "version": stored.VERSION, "method": method, "formats": dict(formats),
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2))


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


def with_stats(
    model: Model, calibration: Tokens, *, roles: Sequence[Role] = ("linear",)
) -> Iterator[tuple[str, Tensor, InputStats | None]]:
    """Every parameter, those of ``roles`` with what they were multiplied with; a pass over the text for every gibibyte
    of statistics. An embedding that is not the head as well is multiplied with nothing.
    """
    waiting: list[str] = []
    held = 0
    names = list(model.weights())
    for at, name in enumerate(names):
        waiting.append(name)
        if calibration and model.shape_role(name) in roles:
            held += model.weights()[name].shape[1] ** 2 * 4
        if held >= GRAM_BYTES or at + 1 == len(names):
            stats = _watch(model, [n for n in waiting if model.shape_role(n) in roles], calibration)
            for param in waiting:
                yield param, model.weights()[param], stats.get(param)
            waiting, held = [], 0


def _watch(model: Model, names: list[str], calibration: Tokens) -> dict[str, InputStats]:
    if not calibration or not names:
        return {}
    watched = {n: _Watched(model.weights()[n]) for n in names}
    decoder = Decoder(model.spec, {**model.weights(), **watched}, rope_length=model.rope_length)
    heads = any(model.shape_role(name) == "embed" for name in names)
    for tokens in calibration:
        with_head(decoder, tokens) if heads else without_head(decoder, tokens)
    return {name: matrix.stats for name, matrix in watched.items() if matrix.stats.count}


def run(decoder: Decoder, texts: Tokens) -> list[Tensor]:
    """Logits float32 ``[tokens, vocab]`` of every text, each by itself."""
    return [with_head(decoder, tokens) for tokens in texts]


@torch.inference_mode()
def with_head(decoder: Decoder, tokens: Sequence[int]) -> Tensor:
    """Logits float32 ``[tokens, vocab]`` of one text."""
    return decoder.logits(without_head(decoder, tokens))


@torch.inference_mode()
def without_head(decoder: Decoder, tokens: Sequence[int]) -> Tensor:
    """Hidden states ``[tokens, hidden]`` of one text."""
    view = DenseView(DenseCache(), [0], [len(tokens)])
    return decoder.forward(torch.tensor(list(tokens)), torch.arange(len(tokens)), view)


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
            name: {"format": str(c), "bytes": c.num_bytes, "relative_error": c.relative_error}
            for name, c in report.params.items()
            if set(c.formats) != {None}
        },
    }
