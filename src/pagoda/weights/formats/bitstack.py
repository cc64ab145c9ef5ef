"""bitstack: a stack of residual blocks of about one bit per weight; as many as memory holds (arXiv:2410.23918, 3).

A block is the signs of what the blocks before it left, and a low-rank approximation of its magnitudes. Blocks add up,
so the first n of them are a matrix of n bits: quality grows with every block, and one can come or go at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import ConfigError
from ...kernels.packed_bytes import MAX_BLOCKS
from ._bits import pack_bits, packed_width, unpack_bits
from ._svd import low_rank
from .base import Part, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class BitStack(WeightFormat):
    """``w ~= sum over blocks of sign * (left @ right)``, left and right float16 of rank ``rank``.

    Block i is the codes ``sign<i>``, ``left<i>``, ``right<i>``; codes that lack the last blocks are valid.
    """

    blocks: int = 4
    rank: int = 8

    name = "bitstack"
    opened = "bitstack"
    row_wise = False
    relative_error = 0.18
    shared = tuple(f"right{i}" for i in range(MAX_BLOCKS))

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= MAX_BLOCKS:
            raise ConfigError(f"bitstack blocks is {self.blocks}; accepted: 1 to {MAX_BLOCKS}")
        if self.rank < 1:
            raise ConfigError(f"bitstack rank is {self.rank}; give a whole number from 1")

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        found: dict[str, Part] = {}
        for i in range(self.blocks):
            found[f"sign{i}"] = ((rows, packed_width(cols, 1)), "uint8")
            found[f"left{i}"] = ((rows, self.rank), "float16")
            found[f"right{i}"] = ((self.rank, cols), "float16")
        return found

    def quantize(self, weight: Tensor) -> Codes:
        codes: Codes = {}
        left_over = weight
        for i in range(self.blocks):
            left, right = (t.half() for t in low_rank(left_over.abs(), self.rank))
            codes |= {f"sign{i}": pack_bits((left_over < 0).byte(), 1), f"left{i}": left, f"right{i}": right}
            left_over = left_over - self._block(codes, i, weight.shape[1])
        return codes

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        total = self._block(codes, 0, cols)
        for i in range(1, self.blocks):
            if f"sign{i}" in codes:
                total += self._block(codes, i, cols)
        return total

    def _block(self, codes: Codes, i: int, cols: int) -> Tensor:
        sign = 1 - 2 * unpack_bits(codes[f"sign{i}"], 1, cols).float()
        return sign * (codes[f"left{i}"].float() @ codes[f"right{i}"].float())


FORMAT = BitStack
