"""nf4: 4 bits per weight on a grid that holds equal shares of a normal distribution (QLoRA, arXiv:2305.14314, 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...kernels.packed_bytes import NF4_LEVELS, packed_nbytes
from ._bits import grouped, pack_bits, packed_width, ungrouped, unpack_bits
from .base import Part, WeightFormat, check_finite, check_group, empty_codes, num_groups

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class NF4(WeightFormat):
    """``w ~= NF4_LEVELS[codes] * scale``, scale float32 ``max|group|``."""

    group: int = 64

    name = "nf4"
    kernel = "nf4"
    relative_error = 0.12

    def __post_init__(self) -> None:
        check_group(self.name, self.group)

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {
            "codes": ((rows, packed_width(cols, 4)), "uint8"),
            "scale": ((rows, num_groups(cols, self.group)), "float32"),
        }

    def quantize(self, weight: Tensor) -> Codes:
        from ...kernels.quantize import nearest_levels

        numbers, scale = nearest_levels(grouped(weight, self.group))
        return {"codes": pack_bits(ungrouped(numbers, weight.shape[1]), 4), "scale": scale}

    def quantize_fast(self, rows: Tensor, num_threads: int) -> Codes | None:
        from ...kernels.quantize_rows import can_quantize, to_levels

        if not can_quantize(rows):
            return None
        codes = empty_codes(self, *rows.shape)
        check_finite(to_levels(rows, self.group, codes["codes"], codes["scale"], num_threads))
        return codes

    @property
    def kernel_group(self) -> int:
        return self.group

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return unpack_bits(codes["codes"], 4, cols), codes["scale"], None

    def num_bytes(self, rows: int, cols: int) -> int:
        return packed_nbytes("nf4", rows, cols, group=self.group, wide_scales=True)

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        import torch

        levels = torch.tensor(NF4_LEVELS, device=codes["codes"].device)
        values = levels[unpack_bits(codes["codes"], 4, cols).int()]
        return ungrouped(grouped(values, self.group) * codes["scale"][..., None], cols)


FORMAT = NF4
