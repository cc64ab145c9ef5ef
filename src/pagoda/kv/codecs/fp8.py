"""Eight-bit floats (e4m3: four bits of exponent, three of mantissa), a scale for each slot of each head.

The scale moves the slot's largest number to 448, the largest e4m3. What is small keeps its relative precision (1/16)
down to 2^-6 of the unit, where `int8` has an absolute one: better for slots with a few outliers, worse for even ones.
Bytes of a slot: dim + 2.

Paper: FP8 formats for deep learning (arXiv:2209.05433).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import bfloat16_above, from_bytes, in_units, to_bytes

if TYPE_CHECKING:
    from torch import Tensor


class Fp8:
    """See `kernels.layout.SlotCodec`."""

    name = "fp8"
    max_error = 1 / 28 * 1.01

    def code_bytes(self, dim: int) -> int:
        return dim

    def scale_bytes(self, dim: int) -> int:
        return 2

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        scale = bfloat16_above(x.abs().amax(-1, keepdim=True) / 448)
        codes = in_units(x, scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return codes.view(torch.uint8), to_bytes(scale)

    def decode(self, codes: Tensor, scales: Tensor, dim: int) -> Tensor:
        import torch

        return codes.contiguous().view(torch.float8_e4m3fn).float() * from_bytes(scales)


CODEC = Fp8()
