"""fp8: 8-bit floats with 4 bits of exponent (e4m3, arXiv:2209.05433), one float32 scale per output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._bits import nonzero
from .base import Part, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes

LARGEST = 448.0


@dataclass(frozen=True)
class FP8(WeightFormat):
    """``w ~= codes * scale``; a row's largest value becomes 448, the largest number of the type."""

    name = "fp8"
    relative_error = 0.035

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"codes": ((rows, cols), "float8_e4m3fn"), "scale": ((rows,), "float32")}

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        scale = weight.abs().amax(1) / LARGEST
        codes = (weight / nonzero(scale)[:, None]).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return {"codes": codes, "scale": scale}

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return codes["codes"].float() * codes["scale"][:, None]


FORMAT = FP8
