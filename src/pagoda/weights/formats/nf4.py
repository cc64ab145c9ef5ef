"""nf4: 4 bits per weight on a grid that holds equal shares of a normal distribution (QLoRA, arXiv:2305.14314, 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._bits import grouped, nonzero, pack_bits, packed_width, ungrouped, unpack_bits
from .base import Part, WeightFormat, check_group, num_groups

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes

# The published levels: quantiles of N(0, 1), scaled so that the ends are -1 and 1, with an exact zero.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class NF4(WeightFormat):
    """``w ~= LEVELS[codes] * scale``, scale float32 ``max|group|``."""

    group: int = 64

    name = "nf4"
    relative_error = 0.12

    def __post_init__(self) -> None:
        check_group(self.name, self.group)

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {
            "codes": ((rows, packed_width(cols, 4)), "uint8"),
            "scale": ((rows, num_groups(cols, self.group)), "float32"),
        }

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        w = grouped(weight, self.group)
        scale = w.abs().amax(-1)
        levels = torch.tensor(LEVELS, device=w.device)
        nearest = torch.bucketize(w / nonzero(scale)[..., None], (levels[1:] + levels[:-1]) / 2)
        codes = pack_bits(ungrouped(nearest, weight.shape[1]).to(torch.uint8), 4)
        return {"codes": codes, "scale": scale}

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        import torch

        levels = torch.tensor(LEVELS, device=codes["codes"].device)
        values = levels[unpack_bits(codes["codes"], 4, cols).int()]
        return ungrouped(grouped(values, self.group) * codes["scale"][..., None], cols)


FORMAT = NF4
