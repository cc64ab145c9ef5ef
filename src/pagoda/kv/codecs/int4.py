"""Four-bit integers, asymmetric, a scale and a minimum for every 32 columns of each slot of each head.

``code = round((x - minimum) / scale)`` in 0 … 15. Two codes a byte::

    group of 32 columns   byte i:  column i in the low half, column 16 + i in the high half
    a shorter last one    byte i:  column i, and column ceil(n / 2) + i
    scales of a slot      [ scale 0 | minimum 0 | scale 1 | minimum 1 | … ]   bfloat16

Bytes of a slot: dim / 2 + 4 for each group, so 40 for 64 columns, where bfloat16 takes 128.

A last group of eight columns or fewer would spend as much on scale and minimum as on codes. Within the same bytes it
has six bits a number, floats (e2m3: a sign, two bits of exponent, three of mantissa) in units of ``max |x| / 7.5``, and
no minimum. The lower four bits of its codes lie as above, the upper two behind them, four columns a byte. Heads of
eight channels need it: the large channels of stories260K's keys leave the small ones no step of four bits, whatever
their range or rotation (perplexity + 25 %; six bits + 1 %).

Keys with large biases lose more: a small Qwen2's perplexity rises by 3.6 %, and with ``kivi(bits=4, window=0)``, which
has scales by channel, not at all.

Papers: FlexGen (arXiv:2303.06865) for group-wise 4-bit KV; KIVI (arXiv:2402.02750) for why keys want their scales along
channels, which a codec of single slots cannot have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import bfloat16_above, bfloat16_below, from_bytes, in_units, to_bytes

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32
SHORT = 8
LARGEST = 7.5  # of e2m3


def _groups(dim: int) -> list[tuple[int, int, int]]:
    """(first column, columns, first byte) of each group."""
    return [(first, min(GROUP, dim - first), first // 2) for first in range(0, dim, GROUP)]


class Int4:
    """See `kernels.layout.SlotCodec`."""

    name = "int4"
    max_error = 1 / 15 * 1.03

    def code_bytes(self, dim: int) -> int:
        return sum(_code_bytes(columns) for _, columns, _ in _groups(dim))

    def scale_bytes(self, dim: int) -> int:
        return sum(2 if columns <= SHORT else 4 for _, columns, _ in _groups(dim))

    def form(self, dim: int) -> str:
        """As `codecs.base`: short groups had four bits, scale and minimum, in as many bytes."""
        return "e2m3" if 0 < dim % GROUP <= SHORT else ""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        codes, scales = [], []
        for first, columns, _ in _groups(x.shape[-1]):
            part = x[..., first : first + columns]
            if columns <= SHORT:
                scale, whole = _small_floats(part)
                codes += [_halves(whole & 15), _quarters(whole >> 4)]
                scales.append(scale)
                continue
            # + 0: of -0 and 0 either may be called the smallest or the largest.
            least = bfloat16_below(part.amin(-1, keepdim=True) + 0.0)
            scale = bfloat16_above((part.amax(-1, keepdim=True) - least + 0.0) / 15)
            codes.append(_halves(in_units(part - least, scale).round().clamp(0, 15).to(torch.uint8)))
            scales += [scale, least]
        return torch.cat(codes, -1), to_bytes(torch.cat(scales, -1))

    def decode(self, codes: Tensor, scales: Tensor, dim: int) -> Tensor:
        import torch

        numbers, parts = from_bytes(scales), []
        for group, (_, columns, byte) in enumerate(_groups(dim)):
            packed = codes[..., byte : byte + _code_bytes(columns)]
            half = -(-columns // 2)
            whole = torch.cat([packed[..., :half] & 15, packed[..., :half] >> 4], -1)[..., :columns]
            scale = numbers[..., 2 * group, None]
            if columns <= SHORT:
                upper = torch.stack([packed[..., half:] >> 2 * i & 3 for i in range(4)], -1).flatten(-2)
                parts.append(_values(whole | upper[..., :columns] << 4) * scale)
            else:
                parts.append(whole.float() * scale + numbers[..., 2 * group + 1, None])
        return torch.cat(parts, -1)


def _code_bytes(columns: int) -> int:
    return -(-columns // 2) + (-(-columns // 4) if columns <= SHORT else 0)


def _halves(whole: Tensor) -> Tensor:
    """Four-bit codes, two a byte."""
    import torch

    low, high = whole[..., : -(-whole.shape[-1] // 2)], whole[..., -(-whole.shape[-1] // 2) :]
    return low | torch.nn.functional.pad(high, (0, low.shape[-1] - high.shape[-1])) << 4


def _quarters(whole: Tensor) -> Tensor:
    """Two-bit codes, four a byte."""
    import torch

    parts = torch.nn.functional.pad(whole, (0, -whole.shape[-1] % 4)).unflatten(-1, (-1, 4))
    return parts[..., 0] | parts[..., 1] << 2 | parts[..., 2] << 4 | parts[..., 3] << 6


def _small_floats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale, and e2m3 codes uint8: steps of 1/8 below 2, then of 1/4 and 1/2; the sign is bit 5."""
    import torch

    scale = bfloat16_above(x.abs().amax(-1, keepdim=True) / LARGEST)
    number = in_units(x, scale)
    size = number.abs()
    upper = torch.where(size < 4, 8 + (4 * size).round(), 16 + (2 * size).round())
    whole = torch.where(size < 2, (8 * size).round(), upper).to(torch.uint8)
    return scale, whole | ((number < 0) & (whole > 0)).to(torch.uint8) << 5


def _values(whole: Tensor) -> Tensor:
    """What e2m3 codes stand for, float32."""
    import torch

    size = (whole & 31).float()
    value = torch.where(size < 16, size / 8, torch.where(size < 24, (size - 8) / 4, (size - 16) / 2))
    return torch.where(whole > 31, -value, value)


CODEC = Int4()
