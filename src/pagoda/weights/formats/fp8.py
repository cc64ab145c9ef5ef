"""fp8: 8-bit floats with 4 bits of exponent (e4m3, arXiv:2209.05433), one float32 scale per output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._by_row import ByRow

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class FP8(ByRow):
    """``w ~= codes * scale``; a row's largest value becomes 448, the largest number of the type."""

    name = "fp8"
    kernel = "fp8"
    relative_error = 0.035
    stored = "float8_e4m3fn"

    def quantize(self, weight: Tensor) -> Codes:
        from ...kernels.quantize import fp8_rows

        codes, scale = fp8_rows(weight)
        return {"codes": codes, "scale": scale}

    def write(self, rows: Tensor, codes: Codes, num_threads: int) -> bool:
        from ...kernels.quantize_rows import to_fp8

        return to_fp8(rows, codes["codes"], codes["scale"], num_threads)


FORMAT = FP8
