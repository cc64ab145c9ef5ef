"""What a checkpoint's tensors are to a model: the formats that they come in, and where matrices can be read from while
they are multiplied. No torch: plans ask before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from pagoda.weights.built_rows import BuiltRows
from pagoda.weights.formats.base import WeightFormat
from pagoda.weights.header import TensorEntry
from pagoda.weights.quantization import EXPERT, Quantization, format_text
from pagoda.weights.rows import StoredRows
from pagoda.weights.schemes.base import Logical

from .shape import ModelShape
from .sources import Region, Source, by_matrix, regions_of
from .stream_plan import can_stream, rows_on_disk

EMBED = "embed.weight"
Find = Callable[[str], Source | None]
"""Where a checkpoint tensor goes, by its name; None where the model has no use for it."""


def stored_formats(find: Find, regions: Collection[Region], formats: Mapping[str, WeightFormat]) -> Quantization:
    """Every matrix as the checkpoint has it: packed where all tensors that fill it come in one format, experts of a
    stack each in its own.

    ``regions``: all that a complete checkpoint fills. ``formats``: those of packed tensors, by their names there.
    """
    found: dict[tuple[str, int], set[WeightFormat]] = {}
    packed: set[Region] = set()
    wanted = by_matrix(regions)
    for name, format in formats.items():
        source = find(name)
        for piece in source.pieces if source is not None else ():
            found.setdefault((piece.param, piece.expert), set()).add(replace(format, embed="none"))
            packed |= regions_of(piece, wanted) if piece.is_rows else set()
    partly = {region[0] for region in set(regions) - packed}
    partly |= {param for (param, _), of_it in found.items() if len(of_it) > 1}
    params: dict[str, dict[int, WeightFormat]] = {}
    for (param, expert), of_it in found.items():
        if param not in partly:
            params.setdefault(param, {})[expert] = next(iter(of_it))
    overrides: dict[str, WeightFormat | None] = {}
    for param, each in params.items():
        alike = len(set(each.values())) == 1
        overrides |= (
            {param: next(iter(each.values()))}
            if alike
            else {f"{param}{EXPERT}{expert}": format for expert, format in each.items()}
        )
    return Quantization(overrides=overrides)


def stored_rows(
    find: Find,
    shape: ModelShape,
    quantization: Quantization,
    logical: Mapping[str, Logical],
    entries: Mapping[str, TensorEntry],
) -> tuple[dict[str, StoredRows | BuiltRows], dict[str, str]]:
    """Matrices whose rows can be multiplied as they come from the checkpoint; and why the others' cannot."""
    parts: dict[str, list[tuple[int, Logical]]] = {}
    unfit: dict[str, str] = {}
    for name, tensor in logical.items():
        found = find(name)
        if found is not None and found.tied_head:
            unfit[EMBED] = f"a head is stored beside it ({name!r}), to be compared when it is read"
        if found is None or found.tied_head or found.alternative:
            continue
        for piece in found.pieces:
            if piece.is_rows:
                parts.setdefault(piece.param, []).append((piece.start, tensor))
            else:
                unfit[piece.param] = f"tensor {name!r} is rearranged while it is read"
    fit: dict[str, StoredRows | BuiltRows] = {}
    for matrix in shape.matrices:
        format = can_stream(matrix, quantization)
        if format is None or matrix.name in unfit:
            kind = quantization.of(matrix.name, matrix.role)
            what = "a plain tensor" if kind is None else format_text(kind)
            unfit.setdefault(matrix.name, f"{what} is not multiplied as it is stored")
            continue
        rows, reason = rows_on_disk(format, matrix, parts.get(matrix.name, []), entries)
        if rows is not None:
            fit[matrix.name] = rows
        else:
            unfit[matrix.name] = reason
    return fit, unfit
