"""Weights as a start leaves them in memory, in a file that the next start maps: nothing is read, rounded or laid out.

`pagoda pack` writes the file beside the model, one for each choice of formats. It is taken where it was made of these
very weights in these formats; anything else is left alone, and the start says why. The order of panels is the same for
all instruction sets (`kernels/packed.py`), so a file serves any machine whose kernels read panels.

    <parameter>                      in plain numbers: norms, biases; they are copied, being small
    <parameter>:data, :scales …      the arrays of a `PackedWeight`; ``<parameter>@<expert>`` where experts are stacked
    __metadata__                     what it was made of
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import gcd
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda.core.errors import ConfigError, ModelError, WeightsError
from pagoda.kernels.memory import map_file
from pagoda.kernels.packed import PackedWeight
from pagoda.kernels.packed_bytes import PANEL, data_shape
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.header import TensorEntry, read_header, read_metadata
from pagoda.weights.packed import ExpertStack, PanelMatrix
from pagoda.weights.panel_rows import PanelRows
from pagoda.weights.quantization import EXPERT
from pagoda.weights.reader import Checkpoint, dtype_name, torch_dtype
from pagoda.weights.writer import TensorWriter

from .model import HEAD, Model
from .packed_rows import LAYOUT, PARTS, as_kept, made_of, packed_path, panel_rows
from .params import parameters
from .stored import EMBED

LINE_BYTES = 64  # panels begin at one, in the file as in memory


class PackedFile:
    """Where ``model``'s packed weights lie, if they do."""

    def __init__(self, path: Path, model: Model, checkpoint: Checkpoint, config: Mapping[str, Any], dtype: str) -> None:
        self.file, self._model, self.is_mapped = packed_path(path, model.quantization, dtype), model, False
        self._wanted = made_of(checkpoint, config, model.shape, model.quantization, dtype)

    def why_not(self) -> str | None:
        """Why the file is left alone, in words; None where it is taken. Only where it `is_there`."""
        try:
            found, entries = read_metadata(self.file), read_header(self.file)
        except WeightsError as error:
            return str(error).removeprefix(f"{self.file}: ").partition(";")[0]
        if found.get("layout") != self._wanted["layout"]:
            return f"its panels are of layout {found.get('layout', 'none')}, this Pagoda reads {LAYOUT}"
        if found.get("weights") != self._wanted["weights"]:
            return "the model's files are not those that it was made of"
        if found != self._wanted:
            return "it has other formats"
        return self._unfit(entries)

    @property
    def is_there(self) -> bool:
        return self.file.is_file()

    @property
    def others(self) -> list[str]:
        """Files beside it, of other formats."""
        return sorted(file.name for file in self.file.parent.glob("*.safetensors") if file != self.file)

    def map(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Every parameter of the model, out of the file. Raises WeightsError."""
        model, entries = self._model, read_header(self.file)
        num_bytes = max(entry.offset + entry.num_bytes for entry in entries.values())
        self.is_mapped = True
        told = (lambda done: None) if progress is None else (lambda done: progress(done, num_bytes))
        try:
            with open(self.file, "rb") as file:
                mapped = map_file(file, num_bytes, told)
        except (OSError, ValueError) as error:
            raise WeightsError(f"{self.file}: cannot be mapped ({error})") from error

        def tensor(name: str) -> Tensor | None:
            entry = entries.get(name)
            if entry is None:
                return None
            raw = mapped[entry.offset : entry.offset + entry.num_bytes]
            raw = raw if _is_panels(name) else raw.clone()
            return raw.view(torch_dtype(entry.dtype)).view(entry.shape)

        for name, param in self._params().items():
            if param.role == "experts":
                stack = ExpertStack(*param.shape)
                for expert in range(param.shape[0]):
                    stack.experts[expert] = self._matrix(name, expert, param.shape[-2:], tensor)
                model.keep(name, stack)
            elif self._format(name) is not None:
                model.keep(name, self._matrix(name, -1, param.shape, tensor))
            else:
                found = tensor(name)
                assert found is not None
                model.keep(name, found)

    def checkpoint(self) -> Checkpoint:
        """The file as one, to be read from at every step. Raises WeightsError."""
        return Checkpoint(self.file.parent, read_header(self.file))

    def rows(self, names: Collection[str]) -> dict[str, PanelRows]:
        """Matrices that can be multiplied as they come from the file, of a checkpoint with tensors of these names; no
        experts. Raises WeightsError.
        """
        model = self._model
        return panel_rows(model.source_of, names, model.shape, model.quantization, read_header(self.file))

    def write(self, progress: Callable[[int, int], None] | None = None) -> int:
        """The model's weights, which must all be in memory; the file has its name when it is whole. Returns its bytes.

        Raises ModelError for weights that are not kept in panels, ConfigError or WeightsError where it cannot be
        written.
        """
        tensors = dict[str, Tensor]()
        for name, weight in self._model.weights().items():
            if isinstance(weight, Tensor):
                tensors[name] = weight
                continue
            for own, matrix in _matrices(name, weight):
                if not isinstance(matrix, PanelMatrix):
                    raise ModelError(
                        f"{name} is not kept in panels, so that a file would spare nothing; formats that are: fp32, "
                        "bf16, bf12, fp16, int8, fp8, int5, int4, nf4, w8a8, w4a8, ternary"
                    )
                tensors |= {f"{own}:{part}": found for part, found in matrix.tensors().items()}
        names = sorted(tensors, key=lambda name: -_divides(tensors[name].nbytes))  # whole lines first
        entries = [(name, dtype_name(tensors[name].dtype), tuple(tensors[name].shape)) for name in names]
        try:
            self.file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.file.parent}: cannot be written to ({error.strerror})") from error
        done, total = 0, sum(tensor.nbytes for tensor in tensors.values())
        with TensorWriter(self.file, entries, metadata=self._wanted, cached=True) as out:
            for name in names:
                out.put(name, tensors[name])
                done += tensors[name].nbytes
                if progress is not None:
                    progress(done, total)
        return self.file.stat().st_size

    def _params(self) -> dict[str, Any]:
        """The model's, with a head of its own values where the file has one though the config ties it."""
        params = dict(parameters(self._model.spec))
        if HEAD not in params and f"{HEAD}:data" in read_header(self.file):
            params[HEAD] = params[EMBED]
        return params

    def _format(self, name: str, expert: int = -1) -> WeightFormat | None:
        like = EMBED if name == HEAD and HEAD not in parameters(self._model.spec) else name
        return self._model.quantization.of(like, self._model.shape_role(name), expert)

    def _matrix(
        self, name: str, expert: int, shape: tuple[int, ...], tensor: Callable[[str], Tensor | None]
    ) -> PanelMatrix:
        format, own = self._format(name, expert), _own(name, expert)
        data, scales, zeros = (tensor(f"{own}:{part}") for part in PARTS)
        assert format is not None
        assert data is not None
        format = as_kept(format, scales is not None)
        packed = PackedWeight(format.kernel, *shape, data, scales, zeros, format.kernel_group)
        return PanelMatrix(format, packed, self._model.dtype)

    def _unfit(self, entries: Mapping[str, TensorEntry]) -> str | None:
        """What the file lacks, or has in another size; None where nothing."""
        for name, param in self._params().items():
            for expert in range(param.shape[0]) if param.role == "experts" else (-1,):
                format, own = self._format(name, expert), _own(name, expert)
                rows_cols = tuple(param.shape[-2:])
                if format is None:
                    dtype = torch.float32 if param.float32 else self._model.dtype
                    fits = own in entries and (entries[own].shape, entries[own].dtype) == (
                        tuple(param.shape), dtype_name(dtype)
                    )  # fmt: skip
                else:
                    parts = [entries[f"{own}:{part}"] for part in PARTS if f"{own}:{part}" in entries]
                    rows, cols = rows_cols
                    format = as_kept(format, f"{own}:scales" in entries)
                    data = (1, *data_shape(format.kernel, -(-rows // PANEL), cols)) if format.kernel else ()
                    more = sum(part.num_bytes for part in parts) - format.num_bytes(rows, cols)
                    fits = bool(parts) and parts[0].shape == data
                    fits = fits and (more == 0 or (more > 0 and format.kernel == "bf12"))  # its exceptions
                    fits = fits and all(part.offset % LINE_BYTES == 0 for part in parts[:1])
                if not fits:
                    return f"{own} is missing, or has another size"
        return None


def _matrices(name: str, weight: Any) -> list[tuple[str, Any]]:
    """A matrix, or each of a stack, under its own name."""
    if isinstance(weight, ExpertStack):
        return [(_own(name, expert), matrix) for expert, matrix in enumerate(weight.experts)]
    return [(name, weight)]


def _own(name: str, expert: int) -> str:
    return name if expert < 0 else f"{name}{EXPERT}{expert}"


def _divides(num_bytes: int) -> int:
    """The largest power of two that does, up to a line: in falling order of it all tensors begin at such a multiple."""
    return gcd(num_bytes, LINE_BYTES)


def _is_panels(name: str) -> bool:
    return name.endswith(tuple(f":{part}" for part in PARTS))
