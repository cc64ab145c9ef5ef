"""Four-bit integers, asymmetric, a scale and a minimum for every 32 columns of each slot of each head.

``code = round((x - minimum) / scale)`` in 0 … 15. Two codes a byte::

    group of 32 columns   byte i:  column i in the low half, column 16 + i in the high half
    a shorter last one    byte i:  column i, and column ceil(n / 2) + i
    scales of a slot      [ scale 0 | minimum 0 | scale 1 | minimum 1 | … ]   bfloat16

Bytes of a slot: dim / 2 + 4 for each group, so 40 for 64 columns, where bfloat16 takes 128.

Papers: FlexGen (arXiv:2303.06865) for group-wise 4-bit KV; KIVI (arXiv:2402.02750) for why keys want their scales along
channels, which a codec of single slots cannot have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import bfloat16_above, bfloat16_below, from_bytes, in_units, to_bytes

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32


def _groups(dim: int) -> list[tuple[int, int, int]]:
    """(first column, columns, first byte) of each group."""
    return [(first, min(GROUP, dim - first), first // 2) for first in range(0, dim, GROUP)]


class Int4:
    """See `kernels.layout.SlotCodec`."""

    name = "int4"
    max_error = 1 / 15 * 1.03

    def code_bytes(self, dim: int) -> int:
        return sum(-(-columns // 2) for _, columns, _ in _groups(dim))

    def scale_bytes(self, dim: int) -> int:
        return 4 * len(_groups(dim))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        codes, scales = [], []
        for first, columns, _ in _groups(x.shape[-1]):
            part = x[..., first : first + columns]
            # + 0: of -0 and 0 either may be called the smallest or the largest.
            least = bfloat16_below(part.amin(-1, keepdim=True) + 0.0)
            scale = bfloat16_above((part.amax(-1, keepdim=True) - least + 0.0) / 15)
            whole = in_units(part - least, scale).round().clamp(0, 15).to(torch.uint8)
            low, high = whole[..., : -(-columns // 2)], whole[..., -(-columns // 2) :]
            high = torch.nn.functional.pad(high, (0, low.shape[-1] - high.shape[-1]))
            codes.append(low | high << 4)
            scales += [scale, least]
        return torch.cat(codes, -1), to_bytes(torch.cat(scales, -1))

    def decode(self, codes: Tensor, scales: Tensor, dim: int) -> Tensor:
        import torch

        numbers, parts = from_bytes(scales), []
        for group, (_, columns, byte) in enumerate(_groups(dim)):
            packed = codes[..., byte : byte + -(-columns // 2)]
            whole = torch.cat([packed & 15, packed >> 4], -1)[..., :columns].float()
            parts.append(whole * numbers[..., 2 * group, None] + numbers[..., 2 * group + 1, None])
        return torch.cat(parts, -1)


CODEC = Int4()
