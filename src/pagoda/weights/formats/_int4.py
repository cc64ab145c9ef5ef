"""4-bit integers with a scale per group of inputs, and a zero point where asymmetric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import ConfigError, choices
from ...kernels.packed_bytes import packed_nbytes
from ._bits import grouped, nonzero, pack_bits, packed_width, ungrouped, unpack_bits
from .base import Part, WeightFormat, check_finite, check_group, empty_codes, num_groups

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


SCALES = ("bfloat16", "float32")


@dataclass(frozen=True)
class GroupInt4(WeightFormat):
    """``w ~= (codes - zero) * scale``: codes 0..15, two a byte; zero 0..15 in uint8, or 8 where ``symmetric``.

    A symmetric scale may be negative: the largest value of a group, whatever its sign, becomes exactly -8 steps.
    ``scale`` is the scales' dtype; codes are chosen for the rounded scale, so float32 serves other people's codes.
    """

    group: int = 128
    symmetric: bool = False
    scale: str = "bfloat16"

    kernel = "int4"
    relative_error = 0.14

    def __post_init__(self) -> None:
        check_group(self.name, self.group)
        if self.scale not in SCALES:
            raise ConfigError(choices(f"{self.name} scale", self.scale, SCALES))

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        groups = num_groups(cols, self.group)
        found: dict[str, Part] = {
            "codes": ((rows, packed_width(cols, 4)), "uint8"),
            "scale": ((rows, groups), self.scale),
        }
        return found if self.symmetric else found | {"zero": ((rows, groups), "uint8")}

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        w = grouped(weight, self.group)
        scale, zero = self.grid(w)
        steps = (w / nonzero(scale.float())[..., None]).round()
        found = (steps + (8 if zero is None else zero[..., None])).clamp(0, 15)
        codes = {"codes": pack_bits(ungrouped(found, weight.shape[1]).to(torch.uint8), 4), "scale": scale}
        return codes if zero is None else codes | {"zero": zero.to(torch.uint8)}

    def quantize_fast(self, rows: Tensor, num_threads: int) -> Codes | None:
        from ...kernels.quantize_rows import can_quantize, to_int4

        if not can_quantize(rows):
            return None
        codes = empty_codes(self, *rows.shape)
        check_finite(to_int4(rows, self.group, codes["codes"], codes["scale"], codes.get("zero"), num_threads))
        return codes

    def grid(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales and zeros (float, None where symmetric) ``[rows, groups]`` of ``[rows, groups, group]``."""
        import torch

        dtype = getattr(torch, self.scale)
        if self.symmetric:
            largest = w.gather(-1, w.abs().argmax(-1, keepdim=True))[..., 0]
            return (largest / -8).to(dtype), None
        low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
        scale = ((high - low) / 15).to(dtype)
        return scale, (-low / nonzero(scale.float())).round().clamp(0, 15)

    @property
    def kernel_group(self) -> int:
        return self.group

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q = unpack_bits(codes["codes"], 4, cols)
        return (q, codes["scale"], codes["zero"]) if "zero" in codes else (q.char() - 8, codes["scale"], None)

    def num_bytes(self, rows: int, cols: int) -> int:
        wide = self.scale == "float32"
        return packed_nbytes("int4", rows, cols, group=self.group, zeros=not self.symmetric, wide_scales=wide)

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        steps = grouped(unpack_bits(codes["codes"], 4, cols).float(), self.group)
        zero = codes["zero"].float()[..., None] if "zero" in codes else 8
        return ungrouped((steps - zero) * codes["scale"].float()[..., None], cols)
