"""Very few bits in groups, and a low-rank term that takes up what they lose (INT2.1, arXiv:2306.08162, 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._bits import grouped, nonzero, pack_bits, packed_width, ungrouped, unpack_bits
from ._svd import low_rank
from .base import Part, WeightFormat, check_group, num_groups

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes

ROUNDS = 3  # of quantizing what the low-rank term leaves, and fitting the term to what quantizing leaves (LoftQ)


@dataclass(frozen=True)
class LowRankCorrected(WeightFormat):
    """``w ~= low + codes * step + left @ right``; low and step float16 per group, left and right float16.

    ``rank`` 0 leaves the correction out. Codes of 3 bits lie in two planes, two bits in ``codes`` and one in ``high``.
    """

    group: int = 64
    rank: int = 16

    bits: ClassVar[int]
    row_wise = False
    shared = ("right",)

    def __post_init__(self) -> None:
        check_group(self.name, self.group)
        if self.rank < 0:
            raise ConfigError(f"{self.name} rank is {self.rank}; give a whole number from 0")

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        groups = num_groups(cols, self.group)
        found: dict[str, Part] = {"codes": ((rows, packed_width(cols, 2)), "uint8")}
        if self.bits == 3:
            found["high"] = ((rows, packed_width(cols, 1)), "uint8")
        found |= {"step": ((rows, groups), "float16"), "low": ((rows, groups), "float16")}
        if self.rank:
            found |= {"left": ((rows, self.rank), "float16"), "right": ((self.rank, cols), "float16")}
        return found

    def quantize(self, weight: Tensor) -> Codes:
        codes = self._grid(weight)
        if not self.rank:
            return codes
        for turn in range(ROUNDS):
            left, right = low_rank(weight - self._on_grid(codes, weight.shape[1]), self.rank)
            if turn + 1 < ROUNDS:
                codes = self._grid(weight - left @ right)
        return codes | {"left": left.half(), "right": right.half()}

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        plain = self._on_grid(codes, cols)
        return plain + codes["left"].float() @ codes["right"].float() if self.rank else plain

    def _grid(self, weight: Tensor) -> Codes:
        import torch

        top = 2**self.bits - 1
        w = grouped(weight, self.group)
        low, high = w.amin(-1).half(), w.amax(-1)
        step = ((high - low.float()) / top).half()
        q = ((w - low.float()[..., None]) / nonzero(step.float())[..., None]).round().clamp(0, top)
        flat = ungrouped(q, weight.shape[1]).to(torch.uint8)
        planes = {"codes": pack_bits(flat & 3, 2)}
        if self.bits == 3:
            planes["high"] = pack_bits(flat >> 2, 1)
        return planes | {"step": step, "low": low}

    def _on_grid(self, codes: Codes, cols: int) -> Tensor:
        q = unpack_bits(codes["codes"], 2, cols)
        if self.bits == 3:
            q = q + 4 * unpack_bits(codes["high"], 1, cols)
        steps = grouped(q.float(), self.group) * codes["step"].float()[..., None]
        return ungrouped(steps + codes["low"].float()[..., None], cols)
