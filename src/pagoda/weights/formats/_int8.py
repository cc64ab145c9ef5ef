"""8-bit integers with one scale per row; weight-only and with int8 activations differ only in how they multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...kernels.packed_bytes import packed_nbytes
from ._bits import nonzero
from .base import Part, WeightFormat, check_finite, empty_codes

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class RowInt8(WeightFormat):
    """``w ~= codes * scale``: codes int8 in [-127, 127], scale float32 ``max|row| / 127``."""

    kernel = "int8"
    relative_error = 0.015

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"codes": ((rows, cols), "int8"), "scale": ((rows,), "float32")}

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        scale = weight.abs().amax(1) / 127
        return {"codes": (weight / nonzero(scale)[:, None]).round().to(torch.int8), "scale": scale}

    def quantize_fast(self, rows: Tensor, num_threads: int) -> Codes | None:
        from ...kernels.quantize_rows import can_quantize, to_int8

        if not can_quantize(rows):
            return None
        codes = empty_codes(self, *rows.shape)
        check_finite(to_int8(rows, codes["codes"], codes["scale"], num_threads))
        return codes

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return codes["codes"], codes["scale"], None

    def num_bytes(self, rows: int, cols: int) -> int:
        return packed_nbytes("int8", rows, cols)

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return codes["codes"].float() * codes["scale"][:, None]
