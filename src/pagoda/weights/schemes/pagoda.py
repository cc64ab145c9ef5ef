"""Checkpoints that `pagoda quantize` writes: the codes of our own formats, under our own parameter names.

pagoda.<parameter>               a parameter in plain numbers
pagoda.<parameter>:<code>        one tensor of a matrix's codes; ``<parameter>@<expert>`` where experts are stacked
quantization_config.formats      parameter, or ``<parameter>@<expert>`` -> format text
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...core.config import Section
from ...core.errors import WeightsError
from ..formats.base import WeightFormat
from ..quantization import EXPERT, parse_format
from .base import Logical, Scheme, plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..packed import CodedMatrix

OWN, PREFIX, CODE, VERSION = "pagoda", "pagoda.", ":", 1


class Pagoda(Scheme):
    def setup(self) -> None:
        section = Section(self.config, "quantization_config")
        version = section.read("version", int)
        if version != VERSION:
            raise WeightsError(f"quantization_config: version {version} of a newer Pagoda; accepted: {VERSION}")
        self.formats = {name: parse_format(text) for name, text in section.read("formats", dict[str, str]).items()}

    def logical(self) -> dict[str, Logical]:
        found: dict[str, Logical] = {}
        codes: dict[str, list[str]] = {}
        for stored, entry in self.entries.items():
            name, _, code = stored.partition(CODE)
            if code:
                codes.setdefault(name, []).append(code)
            else:
                found[name] = plain(stored, entry)
        return found | {name: self._matrix(name, kinds) for name, kinds in codes.items()}

    def _matrix(self, name: str, kinds: list[str]) -> Logical:
        own = name.removeprefix(PREFIX)
        param = own.partition(EXPERT)[0]
        format = self.formats.get(own) or self.formats.get(param)
        if format is None:
            raise WeightsError(
                f"quantization_config: formats does not name {param!r}, but the checkpoint has its codes"
            )
        stored = {kind: f"{name}{CODE}{kind}" for kind in kinds}
        rows, cols = self._size(name, format, stored)
        for kind, (shape, _) in format.parts(rows, cols).items():
            self.expect(f"{name}{CODE}{kind}", shape)
        return Logical(
            tuple(part for kind, part in stored.items() if kind != "size"),
            (rows, cols),
            lambda t: _build(t, stored, format, cols),
            format,
            made_bytes=0,
            rows=stored.get("codes", stored.get("values")),
            by_rows=True,
        )

    def _size(self, name: str, format: WeightFormat, stored: Mapping[str, str]) -> tuple[int, int]:
        """Rows and columns, stored beside the codes: packed codes do not say how full their last byte is."""
        if "size" not in stored:
            raise WeightsError(
                f"tensor {name + CODE + 'size'!r} is missing: rows and columns of a {format.name} matrix"
            )
        self.expect(stored["size"], (2,))
        rows, cols = (int(n) for n in self.read(stored["size"]))
        return rows, cols


def _build(tensors: Mapping[str, Tensor], stored: Mapping[str, str], format: WeightFormat, cols: int) -> CodedMatrix:
    """``tensors`` are the parts that were read: `TensorSource.without` leaves some out."""
    import torch

    from ..packed import CodedMatrix

    codes = {kind: tensors[name] for kind, name in stored.items() if name in tensors}
    return CodedMatrix(format, codes, cols, torch.float32)


SCHEME = Pagoda
