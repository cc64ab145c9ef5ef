"""ggml's blocks of quantized weights, opened (layouts as in ggml-common.h).

Q8_0  32 weights, 34 bytes    d f16, q int8 [32]                                   w = d q
Q4_0  32 weights, 18 bytes    d f16, q 4 bits [32]: first half low                 w = d (q - 8)
Q4_1  32 weights, 20 bytes    d f16, m f16, q as in Q4_0                           w = d q + m
Q5_0  32 weights, 22 bytes    d f16, fifth bits [32], q as in Q4_0                 w = d (q - 16)
Q5_1  32 weights, 24 bytes    d f16, m f16, fifth bits [32], q as in Q4_0          w = d q + m
Q4_K 256 weights, 144 bytes   d f16, dmin f16, 12 bytes of 6-bit scales and mins of 8 parts, q 4 bits
Q5_K 256 weights, 176 bytes   the same, with fifth bits [256] before q             w = d scale q - dmin min
Q6_K 256 weights, 210 bytes   low 4 bits [128], high 2 bits [64], scales int8 [16], d f16
                                                                                   w = d scale (q - 32)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .formats.base import Part, WeightFormat
from .gguf_header import TYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .formats.base import Codes


@dataclass(frozen=True)
class Blocks(WeightFormat):
    """A GGUF type as the format of a matrix that passes: opened tile by tile on its way into another format."""

    kind: str = "Q8_0"
    embed: str = "none"

    name = "gguf"

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        _, block, size = next(found for found in TYPES.values() if found[0] == self.kind)
        return {"blocks": ((rows, cols // block * size), "uint8")}

    def quantize(self, weight: Tensor) -> Codes:
        raise NotImplementedError("GGUF blocks are read, not written")

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        import torch

        return self.dequantize_to(codes, cols, torch.float32)

    def dequantize_to(self, codes: Codes, cols: int, dtype: torch.dtype) -> Tensor:
        from ..kernels.open_blocks import DTYPES, can_open, open_rows

        raw = codes["blocks"]
        if dtype in DTYPES and can_open(raw):
            return open_rows(raw, self.kind, OPENERS[self.kind][0], cols, dtype)
        return open_blocks(raw, self.kind).to(dtype)


def open_blocks(raw: Tensor, kind: str) -> Tensor:
    """uint8 ``[rows, bytes]`` -> float32 ``[rows, cols]``."""
    size, opener = OPENERS[kind]
    return opener(raw.reshape(-1, size)).reshape(raw.shape[0], -1)


def int4_codes(raw: Tensor) -> Codes:
    """Q4_0 as codes of ``int4(group=32, symmetric=True, scale='float32')``: the same numbers."""
    from ..kernels.open_blocks import can_open, split_q4_0

    if can_open(raw):
        codes, scale = split_q4_0(raw)
        return {"codes": codes, "scale": scale}
    return plain_int4_codes(raw)


def plain_int4_codes(raw: Tensor) -> Codes:
    """The plain twin of ``int4_codes``."""
    from .formats._bits import pack_bits

    blocks = raw.reshape(-1, OPENERS["Q4_0"][0])
    rows = raw.shape[0]
    return {
        "codes": pack_bits(_nibbles(blocks[:, 2:]).reshape(rows, -1), 4),
        "scale": _half(blocks[:, :2]).reshape(rows, -1),
    }


def _half(raw: Tensor) -> Tensor:
    """Bytes ``[..., 2 n]`` of float16 -> float32 ``[..., n]``."""
    import torch

    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """``[blocks, n]`` -> ``[blocks, 2 n]``: all low halves, then all high ones."""
    import torch

    return torch.cat((raw & 15, raw >> 4), 1)


def _fifths(raw: Tensor) -> Tensor:
    """32 bits in four bytes, lowest first ``[blocks, 4]`` -> their weight, 16 or 0 ``[blocks, 32]``."""
    import torch

    bits = (raw[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1) << 4


def _q8_0(blocks: Tensor) -> Tensor:
    import torch

    return _half(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).float() + _half(blocks[:, 2:4])


def _q5_0(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, 6:]) | _fifths(blocks[:, 2:6])
    return _half(blocks[:, :2]) * (q.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    q = _nibbles(blocks[:, 8:]) | _fifths(blocks[:, 4:8])
    return _half(blocks[:, :2]) * q.float() + _half(blocks[:, 2:4])


def _parts_of(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima ``[blocks, 8]`` of the 12 bytes that Q4_K and Q5_K share, times d and dmin."""
    import torch

    d, dmin, packed = _half(blocks[:, :2]), _half(blocks[:, 2:4]), blocks[:, 4:16]
    # Parts 0-3 have their 6 bits in bytes 0-3 and 4-7; of parts 4-7 four bits are in bytes 8-11, two above those.
    low, high, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = torch.cat((low & 63, (last & 15) | ((low >> 6) << 4)), 1).float()
    least = torch.cat((high & 63, (last >> 4) | ((high >> 6) << 4)), 1).float()
    return d * scale, dmin * least


def _halves(raw: Tensor) -> Tensor:
    """``[blocks, 128]`` -> ``[blocks, 8, 32]``: 32 bytes hold parts 2n (low) and 2n + 1 (high)."""
    import torch

    runs = raw.reshape(-1, 4, 32)
    return torch.stack((runs & 15, runs >> 4), 2).reshape(-1, 8, 32)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, least = _parts_of(blocks)
    return (scale[..., None] * _halves(blocks[:, 16:]).float() - least[..., None]).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    import torch

    scale, least = _parts_of(blocks)
    # The fifth bit of weight i of part n is bit n of byte i.
    fifths = (blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]) & 1
    q = _halves(blocks[:, 48:]) | (fifths << 4)
    return (scale[..., None] * q.float() - least[..., None]).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    import torch

    low, high = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 128:192].reshape(-1, 2, 32)
    scale = blocks[:, 192:208].contiguous().view(torch.int8).float()
    # Each half of 128 weights: four runs of 32, the low bits from bytes 0-31 and 32-63, first their low half.
    lows = torch.cat((low & 15, low >> 4), 2).reshape(-1, 2, 4, 32)
    highs = torch.stack([(high >> shift) & 3 for shift in (0, 2, 4, 6)], 2)
    q = (lows | (highs << 4)).reshape(-1, 16, 16).float() - 32
    return (_half(blocks[:, 208:]) * scale)[..., None].mul(q).flatten(1)


OPENERS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "Q8_0": (34, _q8_0), "Q4_0": (18, _q4_0), "Q4_1": (20, _q4_1), "Q5_0": (22, _q5_0), "Q5_1": (24, _q5_1),
    "Q4_K": (144, _q4_k), "Q5_K": (176, _q5_k), "Q6_K": (210, _q6_k),
}  # fmt: skip
"""Type -> bytes of a block, and what opens blocks ``[n, bytes]`` into float32 ``[n, weights]``."""
