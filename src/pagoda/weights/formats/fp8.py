"""fp8: 8-bit floats with 4 bits of exponent (e4m3, arXiv:2209.05433), one float32 scale per output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...kernels.packed_bytes import packed_nbytes
from .base import Part, WeightFormat, check_finite, empty_codes

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class FP8(WeightFormat):
    """``w ~= codes * scale``; a row's largest value becomes 448, the largest number of the type."""

    name = "fp8"
    kernel = "fp8"
    relative_error = 0.035

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"codes": ((rows, cols), "float8_e4m3fn"), "scale": ((rows,), "float32")}

    def quantize(self, weight: Tensor) -> Codes:
        from ...kernels.quantize import fp8_rows

        codes, scale = fp8_rows(weight)
        return {"codes": codes, "scale": scale}

    def quantize_fast(self, rows: Tensor, num_threads: int) -> Codes | None:
        from ...kernels.quantize_rows import can_quantize, to_fp8

        if not can_quantize(rows):
            return None
        codes = empty_codes(self, *rows.shape)
        check_finite(to_fp8(rows, codes["codes"], codes["scale"], num_threads))
        return codes

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return codes["codes"], codes["scale"], None

    def num_bytes(self, rows: int, cols: int) -> int:
        return packed_nbytes("fp8", rows, cols)

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return codes["codes"].float() * codes["scale"][:, None]


FORMAT = FP8
