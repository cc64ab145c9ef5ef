"""Eight-bit integers, symmetric, a scale for each slot of each head.

``code = round(x / scale)`` in -127 … 127 with ``scale = max |x| / 127``: an error of at most half a scale, 0.4 % of the
slot's largest number. Per slot and head, because the keys' outliers sit in fixed channels of single heads, and because
nothing else lets slots be written and dropped one by one. Bytes of a slot: dim + 2.

Paper: LLM.int8() (arXiv:2208.07339) for vector-wise scales; KVQuant (arXiv:2401.18079) for what finer grids bring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import bfloat16_above, from_bytes, in_units, to_bytes

if TYPE_CHECKING:
    from torch import Tensor


class Int8:
    """See `kernels.layout.SlotCodec`."""

    name = "int8"
    max_error = 0.5 / 127 * 1.01

    def code_bytes(self, dim: int) -> int:
        return dim

    def scale_bytes(self, dim: int) -> int:
        return 2

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        scale = bfloat16_above(x.abs().amax(-1, keepdim=True) / 127)
        codes = in_units(x, scale).round().clamp(-127, 127).to(torch.int8)
        return codes.view(torch.uint8), to_bytes(scale)

    def decode(self, codes: Tensor, scales: Tensor, dim: int) -> Tensor:
        import torch

        return codes.contiguous().view(torch.int8).float() * from_bytes(scales)


CODEC = Int8()
