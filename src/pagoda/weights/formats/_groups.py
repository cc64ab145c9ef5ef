"""Integers of 4 or 5 bits with a scale per group of inputs, and a zero point where asymmetric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError, choices
from ...kernels.packed_bytes import GROUPS, packed_nbytes
from ._bits import grouped, nonzero, pack_bits, packed_width, ungrouped, unpack_bits
from .base import Part, WeightFormat, check_finite, check_group, empty_codes, num_groups

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


SCALES = ("bfloat16", "float32")


@dataclass(frozen=True)
class GroupedIntegers(WeightFormat):
    """``w ~= (codes - zero) * scale``: codes 0..top; zero 0..top in uint8, or ``middle`` where ``symmetric``.

    A symmetric scale may be negative: the largest value of a group, whatever its sign, becomes exactly -middle steps.
    ``scale`` is the scales' dtype; codes are chosen for the rounded scale, so float32 serves other people's codes.
    """

    group: int = 128
    symmetric: bool = False
    scale: str = "bfloat16"

    bits: ClassVar[int] = 4
    kernel = "int4"
    relative_error = 0.14

    def __post_init__(self) -> None:
        check_group(self.name, self.group, GROUPS[self.kernel])
        if self.scale not in SCALES:
            raise ConfigError(choices(f"{self.name} scale", self.scale, SCALES))

    @property
    def top(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    @property
    def middle(self) -> int:
        return int(2 ** (self.bits - 1))

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        groups = num_groups(cols, self.group)
        found: dict[str, Part] = {
            "codes": ((rows, packed_width(cols, self.bits)), "uint8"),
            "scale": ((rows, groups), self.scale),
        }
        return found if self.symmetric else found | {"zero": ((rows, groups), "uint8")}

    def quantize(self, weight: Tensor) -> Codes:
        w = grouped(weight, self.group)
        scale, zero = self.grid(w)
        steps = (w / nonzero(scale.float())[..., None]).round()
        found = (steps + (self.middle if zero is None else zero[..., None])).clamp(0, self.top)
        return self.coded(ungrouped(found, weight.shape[1]), scale, zero)

    def coded(self, values: Tensor, scale: Tensor, zero: Tensor | None) -> Codes:
        """Codes of whole numbers 0..top ``[rows, cols]``, with scales and zeros ``[rows, groups]``."""
        import torch

        codes = {"codes": pack_bits(values.to(torch.uint8), self.bits), "scale": scale}
        return codes if zero is None else codes | {"zero": zero.to(torch.uint8)}

    def quantize_fast(self, rows: Tensor, num_threads: int) -> Codes | None:
        from ...kernels.quantize_rows import can_quantize, in_groups

        if not can_quantize(rows):
            return None
        codes = empty_codes(self, *rows.shape)
        found = codes["codes"], codes["scale"], codes.get("zero")
        check_finite(in_groups(rows, self.bits, self.group, *found, num_threads))
        return codes

    def grid(self, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales and zeros (float, None where symmetric) ``[rows, groups]`` of ``[rows, groups, group]``."""
        import torch

        dtype = getattr(torch, self.scale)
        if self.symmetric:
            largest = w.gather(-1, w.abs().argmax(-1, keepdim=True))[..., 0]
            return (largest / -self.middle).to(dtype), None
        low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
        scale = ((high - low) / self.top).to(dtype)
        return scale, (-low / nonzero(scale.float())).round().clamp(0, self.top)

    @property
    def kernel_group(self) -> int:
        return self.group

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q = unpack_bits(codes["codes"], self.bits, cols)
        return (q, codes["scale"], codes["zero"]) if "zero" in codes else (q.char() - self.middle, codes["scale"], None)

    def num_bytes(self, rows: int, cols: int) -> int:
        wide = self.scale == "float32"
        return packed_nbytes(self.kernel, rows, cols, group=self.group, zeros=not self.symmetric, wide_scales=wide)

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        steps = grouped(unpack_bits(codes["codes"], self.bits, cols).float(), self.group)
        zero = codes["zero"].float()[..., None] if "zero" in codes else self.middle
        return ungrouped((steps - zero) * codes["scale"].float()[..., None], cols)
