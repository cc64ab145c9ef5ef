"""8-bit integers with one scale per row; weight-only and with int8 activations differ only in how they multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._bits import nonzero
from ._by_row import ByRow

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class RowInt8(ByRow):
    """``w ~= codes * scale``: codes int8 in [-127, 127], scale float32 ``max|row| / 127``."""

    kernel = "int8"
    relative_error = 0.015
    stored = "int8"

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        scale = weight.abs().amax(1) / 127
        return {"codes": (weight / nonzero(scale)[:, None]).round().to(torch.int8), "scale": scale}

    def write(self, rows: Tensor, codes: Codes, num_threads: int) -> bool:
        from ...kernels.quantize_rows import to_int8

        return to_int8(rows, codes["codes"], codes["scale"], num_threads)
