"""ternary: every weight is -s, 0 or s, one s per output (BitNet b1.58, arXiv:2402.17764, 2); 2 bits per weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...kernels.packed_bytes import packed_nbytes
from ._bits import nonzero, pack_bits, packed_width, unpack_bits
from .base import Part, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class Ternary(WeightFormat):
    """``w ~= (codes - 1) * scale``: codes 0..2, four a byte.

    A row that is ternary already (a BitNet checkpoint) keeps its values exactly; of another the scale is its mean
    magnitude, as in BitNet. Only models trained for it survive that. Embeddings stay: BitNet's are not ternary.
    """

    embed: str = "none"

    name = "ternary"
    kernel = "ternary"
    relative_error = 0.6

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"codes": ((rows, packed_width(cols, 2)), "uint8"), "scale": ((rows,), "float32")}

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        size = weight.abs()
        largest = size.amax(1)
        is_ternary = ((size == 0) | (size == largest[:, None])).all(1)
        scale = torch.where(is_ternary, largest, size.mean(1))
        steps = (weight / nonzero(scale)[:, None]).round().clamp(-1, 1)
        return {"codes": pack_bits((steps + 1).to(torch.uint8), 2), "scale": scale}

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return unpack_bits(codes["codes"], 2, cols).char() - 1, codes["scale"], None

    def num_bytes(self, rows: int, cols: int) -> int:
        return packed_nbytes("ternary", rows, cols)

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return (unpack_bits(codes["codes"], 2, cols).float() - 1) * codes["scale"][:, None]


FORMAT = Ternary
