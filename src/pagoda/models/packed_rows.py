"""What a file of `pagoda pack` says of itself: what it was made of, and where the panels of its matrices lie. No torch:
plans look before anything is loaded. `packed_file` writes, maps and checks whole files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pagoda.core.errors import WeightsError
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.header import TensorEntry, read_header, read_metadata
from pagoda.weights.panel_rows import PanelRows
from pagoda.weights.quantization import Quantization, format_text
from pagoda.weights.reader import Checkpoint

from .fingerprint import fingerprint, stamps
from .shape import ModelShape
from .stored import EMBED, Find

FOLDER, LAYOUT = "packed", 1
"""Number of the order of panels: a file of another one is not read."""
PARTS = ("data", "scales", "zeros")


def packed_folder(path: Path) -> Path:
    """Of packed files, beside a model's folder's other files, or beside its GGUF file."""
    return path / FOLDER if path.is_dir() else path.with_name(f"{path.name}.{FOLDER}")


def packed_path(path: Path, quantization: Quantization, dtype: str) -> Path:
    """Of the file for this choice of formats."""
    name = re.sub(r"[^\w.=-]+", "_", f"{quantization}-{dtype}")
    return packed_folder(path) / f"{name}.safetensors"


def made_of(
    checkpoint: Checkpoint, config: Mapping[str, Any], shape: ModelShape, quantization: Quantization, dtype: str
) -> dict[str, str]:
    """What a file of these weights in these formats says in its metadata."""
    formats = {
        m.name: [format_text(quantization.of(m.name, m.role, expert)) for expert in each_expert(m.role, m.count)]
        for m in shape.matrices
    }
    return {
        "layout": str(LAYOUT), "dtype": dtype, "formats": json.dumps(formats, sort_keys=True),
        "weights": fingerprint(checkpoint, config, "packed", stamps(checkpoint)),
    }  # fmt: skip


def panel_rows(
    find: Find, names: Collection[str], shape: ModelShape, quantization: Quantization,
    entries: Mapping[str, TensorEntry],
) -> dict[str, PanelRows]:  # fmt: skip
    """Matrices that can be multiplied as they come from a file with these ``entries``, of a checkpoint with tensors of
    these ``names``; no experts.
    """
    sources = [source for name in names if (source := find(name)) is not None]
    together = [{piece.param for piece in source.pieces} for source in sources if not source.tied_head]
    shared = set().union(*(params for params in together if len(params) > 1))  # loaded whole, so kept or read whole
    if any(source.tied_head for source in sources):
        shared.add(EMBED)  # the head may have values of its own: it is compared when it is read
    found = dict[str, PanelRows]()
    for matrix in shape.matrices:
        format = quantization.of(matrix.name, matrix.role)
        if format is None or matrix.role not in ("linear", "embed") or matrix.count > 1 or matrix.name in shared:
            continue
        parts = {part: entries[f"{matrix.name}:{part}"] for part in PARTS if f"{matrix.name}:{part}" in entries}
        counted, data = format.num_bytes(matrix.rows, matrix.cols), parts.pop("data")
        format = as_kept(format, "scales" in parts)
        found[matrix.name] = PanelRows(format, matrix.rows, matrix.cols, data, parts, counted)
    return found


def find_panels(
    path: Path, checkpoint: Checkpoint, config: Mapping[str, Any], find: Find, names: Collection[str],
    shape: ModelShape, quantization: Quantization, dtype: str,
) -> dict[str, PanelRows]:  # fmt: skip
    """Matrices that streaming would read from the file beside a model; none where there is no such file of these
    weights, or it is damaged.
    """
    file = packed_path(path, quantization, dtype)
    try:
        if not file.is_file() or read_metadata(file) != made_of(checkpoint, config, shape, quantization, dtype):
            return {}
        return panel_rows(find, names, shape, quantization, read_header(file))
    except (WeightsError, KeyError):
        return {}


def as_kept(format: WeightFormat, scales: bool) -> WeightFormat:
    """A matrix of bf12 whose exponents lie far apart has bf16's panels, which have no windows beside them."""
    return format.read_as if format.kernel == "bf12" and not scales else format


def each_expert(role: str, count: int) -> range | tuple[int]:
    """Their numbers; -1 of a matrix that is none."""
    return range(count) if role == "experts" else (-1,)
