"""A checkpoint put into weight formats, tensor by tensor: of models larger than memory.

In memory are the piece that was read, and the codes of the parameter that it belongs to. `quantize.quantize_model`,
which has the whole model, is the plain twin: it writes the same tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda.budget.ledger import Ledger, Need
from pagoda.core.errors import ModelError
from pagoda.weights.filling import Filling
from pagoda.weights.formats.base import WeightFormat, empty_codes
from pagoda.weights.methods import METHODS, check_method
from pagoda.weights.packed import CodedMatrix
from pagoda.weights.quantization import EXPERT, Quantization, format_text
from pagoda.weights.reader import Checkpoint, dtype_name
from pagoda.weights.schemes import pagoda as stored
from pagoda.weights.source import TensorSource, open_source
from pagoda.weights.writer import TensorWriter

from . import families
from .config_json import quantization_config, read_config
from .dtype_choice import choose_dtype
from .footprint import Footprint
from .model import Model
from .params import Param, parameters
from .quantize import PACKED_ALREADY, WEIGHTS, Chosen, Progress, Report, check_new, write_description
from .resolve import resolve

Codes = dict[str, Tensor]
Entry = tuple[str, str, tuple[int, ...]]


def round_checkpoint(
    path_or_id: str | Path,
    out: Path,
    quantization: Quantization,
    *,
    method: str = "rtn",
    ledger: Ledger | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes the model to the folder ``out`` in the formats of ``quantization``, each value rounded to the nearest;
    codes of linear layers by a ``method`` that looks at no text (rtn, hqq).

    ``progress(done_bytes, total_bytes)``. Raises ConfigError for a format that the method does not know, ModelError for
    a GGUF file, a model that runs through transformers, a tied head with values of its own, or a folder that is not
    empty; BudgetError before anything is read.
    """
    folder = resolve(path_or_id)
    if folder.is_file():
        raise ModelError(PACKED_ALREADY.format(folder))
    config = read_config(folder)
    if not families.is_native(config):
        raise ModelError(f"{folder}: {config['model_type']} runs through transformers, whose weights stay as they are")
    check_method(method, quantization.linear)
    check_new(out)
    source = open_source(Checkpoint.open(folder), quantization_config(config))
    dtype, _ = choose_dtype("auto", config, source.checkpoint, torch.device("cpu"))
    model = Model.from_config(config, dtype=getattr(torch, dtype), quantization=quantization)
    model.pack_by(Rounded)
    model.pack_by(partial(Rounded, method=method), ["linear"])
    plan = WritePlan(model, quantization)
    names = without_tied_head(model, source)
    passing = passing_bytes(model, source, names, plan)
    if method != "rtn":  # tries several grids of a block
        passing += 2 * model.packing_bytes(names, {})
    report = Report(method, bytes_before=model.shape.weight_bytes(dtype))
    footprint, what = Footprint(ledger), "one parameter after another"
    footprint.require([Need("staging", passing, what)])
    with footprint.passing("staging", passing, what):
        write_description(folder, config, out, plan.formats, method)
        with TensorWriter(out / WEIGHTS, plan.entries) as writer:
            _write(model, source, names, plan, writer, report, progress)
    report.bytes_after = sum(chosen.num_bytes for chosen in report.params.values())
    return report


def _write(
    model: Model,
    source: TensorSource,
    names: list[str],
    plan: WritePlan,
    writer: TensorWriter,
    report: Report,
    progress: Progress | None,
) -> None:
    errors: dict[str, list[float]] = {}
    for name, expert, weight in complete_parameters(model, source, names, progress):
        chosen = report.params.setdefault(name, Chosen(plan.kinds[name], 0))
        write_parameter(writer, name, expert, weight)
        if isinstance(weight, Tensor):
            chosen.num_bytes += weight.nbytes
            continue
        chosen.num_bytes += weight.format.num_bytes(*weight.shape)
        sums = errors.setdefault(name, [0.0, 0.0])
        sums[0], sums[1] = sums[0] + weight.lost, sums[1] + weight.total
        chosen.relative_error = (sums[0] / sums[1]) ** 0.5 if sums[1] else 0.0


def complete_parameters(
    model: Model, source: TensorSource, names: list[str], progress: Progress | None
) -> Iterator[tuple[str, int, Any]]:
    """(parameter, expert or -1, weight) of the model as each is complete; the model forgets it then.

    Raises WeightsError, also for what has not come in the end.
    """
    done, total = 0, sum(source.stored_bytes(name) for name in names)
    cut = _cut(model, source, names)
    for part in source.stream(names, cut):
        model.load_tensor(part.name, part.tensor, part.start if part.name in cut else None)
        yield from model.take_complete()
        done += part.num_bytes
        if progress is not None:
            progress(min(done, total), total)
    model.check_complete()


def write_parameter(writer: TensorWriter, name: str, expert: int, weight: Any) -> None:
    """A plain tensor, or a `CodedMatrix`'s codes and size, as `weights/schemes/pagoda.py` reads them back."""
    if isinstance(weight, Tensor):
        writer.put(stored.PREFIX + name, weight)
        return
    own = f"{stored.PREFIX}{name}{EXPERT}{expert}" if expert >= 0 else stored.PREFIX + name
    for kind, codes in weight.codes.items():
        writer.put(f"{own}{stored.CODE}{kind}", codes)
    writer.put(f"{own}{stored.CODE}size", torch.tensor(weight.shape))


def passing_bytes(model: Model, source: TensorSource, names: list[str], plan: WritePlan) -> int:
    """What stands in memory at most while `complete_parameters` runs."""
    read = source.passing_bytes(names, _cut(model, source, names))
    return read + model.packing_bytes(names, source.formats) + plan.most_bytes(names)


def _cut(model: Model, source: TensorSource, names: list[str]) -> set[str]:
    return {name for name in names if model.takes_rows(name, source.logical[name].shape)}


class WritePlan:
    """What will be written: every tensor's name, type and shape, and the formats that config.json names."""

    def __init__(self, model: Model, quantization: Quantization) -> None:
        self._model, self._quantization, self._params = model, quantization, parameters(model.spec)
        self.kinds: dict[str, Mapping[WeightFormat | None, int]] = {}
        self.formats: dict[str, str] = {}
        self.entries: list[Entry] = []
        for name, param in self._params.items():
            count = param.shape[0] if param.role == "experts" else 1
            self.kinds[name] = Counter(quantization.each(name, param.role, count))
            if set(self.kinds[name]) == {None}:
                dtype = torch.float32 if param.float32 else model.dtype
                self.entries.append((stored.PREFIX + name, dtype_name(dtype), param.shape))
                continue
            for own, format in self._matrices(name, param):
                self.entries += _entries(own, format, param.shape[-2], param.shape[-1])
                if len(self.kinds[name]) > 1:
                    self.formats[own] = format_text(format)
            if len(self.kinds[name]) == 1:
                self.formats[name] = format_text(next(iter(self.kinds[name])))

    def most_bytes(self, names: list[str]) -> int:
        """Of the matrices that one checkpoint tensor belongs to, as they stand in memory until they are written."""
        return max((sum(map(self._unit_bytes, self._units(name))) for name in names), default=0)

    def _units(self, name: str) -> set[tuple[str, int]]:
        found = set()
        for piece in self._model.pieces(name):
            param = self._params[piece.param]
            every = range(param.shape[0]) if param.role == "experts" and piece.expert < 0 else (piece.expert,)
            found |= {(piece.param, expert if param.role == "experts" else -1) for expert in every}
        return found

    def _unit_bytes(self, unit: tuple[str, int]) -> int:
        name, expert = unit
        param, dtype = self._params[name], self._model.dtype
        format = self._quantization.of(name, param.role, expert)
        if format is None:
            return param.count * (4 if param.float32 else dtype.itemsize)
        rows, cols = param.shape[-2:]
        return format.stored_bytes(rows, cols) + (0 if format.row_wise else rows * cols * dtype.itemsize)

    def _matrices(self, name: str, param: Param) -> Iterator[tuple[str, WeightFormat]]:
        for expert in range(param.shape[0]) if param.role == "experts" else (-1,):
            format = self._quantization.of(name, param.role, expert)
            assert format is not None, f"{name}: the others of its stack are packed"
            yield (f"{name}{EXPERT}{expert}" if expert >= 0 else name), format


def _entries(own: str, format: WeightFormat, rows: int, cols: int) -> Iterator[Entry]:
    for kind, (shape, dtype) in format.parts(rows, cols).items():
        yield f"{stored.PREFIX}{own}{stored.CODE}{kind}", dtype_name(getattr(torch, dtype)), shape
    yield f"{stored.PREFIX}{own}{stored.CODE}size", "I64", (2,)


def without_tied_head(model: Model, source: TensorSource) -> list[str]:
    """The checkpoint's tensors in an order that completes one parameter after another. A tied head is left out; its
    values have to be the embedding's.
    """
    order = model.load_order(source.names)
    heads = [name for name in order if model.is_tied_head(name)]
    embeds = [n for n in order if n not in heads and any(piece.param == "embed.weight" for piece in model.pieces(n))]
    for name in heads:
        parts = (source.logical[one].parts for one in (name, *embeds))
        if len(embeds) != 1 or not _same(source, *(part[0] for part in parts)):
            raise ModelError(
                f"tensor {name!r} is not the embedding that config.json ties it to; set tie_word_embeddings to false"
            )
    return [name for name in order if name not in heads]


def _same(source: TensorSource, one: str, other: str) -> bool:
    """Whether two stored tensors have the same bytes, some rows at a time."""
    a, b = (source.checkpoint.entries[name] for name in (one, other))
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    step = max(1, (1 << 20) * a.shape[0] // max(1, a.num_bytes))
    parts = [(start, min(start + step, a.shape[0])) for start in range(0, a.shape[0], step)]
    groups = [(a.rows(*part), b.rows(*part)) for part in parts]
    return all(
        torch.equal(*(tensor.view(torch.uint8) for tensor in found.values()))
        for found in source.checkpoint.stream_entries(groups)
    )


class Rounded(Filling):
    """Codes of a matrix, and how far they are from what came: the sum of squares that was lost, and of all."""

    def __init__(
        self,
        format: WeightFormat,
        rows: int,
        cols: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        method: str = "rtn",
    ) -> None:
        super().__init__(format, rows, cols, torch.device(device))
        self._codes: Codes = empty_codes(format, rows, cols) if format.row_wise else {}
        self._whole = None if format.row_wise else torch.empty(rows, cols, dtype=dtype)
        self._lost = self._total = 0.0
        self._choose = METHODS[method]

    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None:
        if self._whole is not None:
            assert block is not None, "whole matrices come as numbers"
            self._whole[start : start + block.shape[0]] = block
            return
        if codes is None:
            assert block is not None
            codes = self._round(block)
        for name, part in codes.items():
            self._codes[name][start : start + part.shape[0]] = part

    def _round(self, block: Tensor) -> Codes:
        codes = self._choose(block, self.format, None)
        self._lost += float((self.format.dequantize(codes, self.cols) - block).square().sum())
        self._total += float(block.square().sum())
        return codes

    def finish(self, dtype: torch.dtype) -> RoundedMatrix:
        codes = self._codes if self._whole is None else self._round(self._whole.float())
        return RoundedMatrix(self.format, codes, self.cols, dtype, self._lost, self._total)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in ([*self._codes.values()] if self._whole is None else [self._whole]))


class RoundedMatrix(CodedMatrix):
    """With what rounding lost, beside the sum of squares of all."""

    __slots__ = ("lost", "total")

    def __init__(
        self, format: WeightFormat, codes: Any, cols: int, dtype: torch.dtype, lost: float, total: float
    ) -> None:
        super().__init__(format, codes, cols, dtype)
        self.lost, self.total = lost, total
