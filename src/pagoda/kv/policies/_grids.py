"""Whole pages as small integers on grids: keys by channel, values by token."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError, choices
from ._windowed import Learned, Seen, WindowedCodec, pack, unpack

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.page_code import Side

GROUP = 32  # columns of a value that share a grid


@dataclass(frozen=True)
class GridCodec(WindowedCodec):
    """Asymmetric integers. Keys have outliers in fixed channels, so a page's slots share a scale and a minimum for each
    channel; values have none, so a token's columns share them, 32 by 32. A page of two bits (16 slots of 64 + 64
    columns) takes 896 bytes, where bfloat16 takes 4096. ``keys="token"`` is plain rounding, the control.
    """

    plain: ClassVar[bool] = True
    keys: str = "channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keys not in ("channel", "token"):
            raise ConfigError(choices("keys", self.keys, ("channel", "token")))

    @property
    @abstractmethod
    def num_bits(self) -> int:
        """2 or 4, bits of a code."""

    @property
    def name(self) -> str:
        return f"{self.num_bits}-bit-{self.keys}"

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        codes = page_size * (_padded(k_dim, self.num_bits) + _padded(v_dim, self.num_bits)) * self.num_bits // 8
        grids = k_dim if self.keys == "channel" else page_size * -(-k_dim // GROUP)
        return codes + 4 * (grids + page_size * -(-v_dim // GROUP))

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        bits, by_channel = self.num_bits, self.keys == "channel"
        parts = [_quantize(k, bits, by_channel=by_channel), _quantize(v, bits, by_channel=False)]
        return torch.cat([x.flatten(-2) for codes_grids in parts for x in codes_grids], -1)

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        found, at = [], 0
        for dim, by_channel in ((k_dim, self.keys == "channel"), (v_dim, False)):
            width = _padded(dim, self.num_bits) * self.num_bits // 8
            rows, columns = (2, dim) if by_channel else (page_size, 2 * -(-dim // GROUP))
            codes = pages[..., at : at + page_size * width].unflatten(-1, (page_size, width))
            at += page_size * width
            grids = pages[..., at : at + 2 * rows * columns].unflatten(-1, (rows, 2 * columns))
            at += 2 * rows * columns
            found.append(_restore(codes, grids, dim, self.num_bits, by_channel))
        return found[0], found[1]

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        bits, found, at = self.num_bits, [], 0
        for dim, by_channel in ((k_dim, self.keys == "channel"), (v_dim, False)):
            grids = at + page_size * _padded(dim, bits) * bits // 8
            found.append(Side("channel_grid" if by_channel else "token_grid", (bits, at, grids)))
            at = grids + 4 * (dim if by_channel else page_size * -(-dim // GROUP))
        return found[0], found[1]


def _padded(dim: int, bits: int) -> int:
    per_byte = 8 // bits
    return -(-dim // per_byte) * per_byte


def _quantize(x: Tensor, bits: int, *, by_channel: bool) -> tuple[Tensor, Tensor]:
    """codes uint8 [..., slots, bytes] and grids (scales, minima) as bytes of bfloat16: [..., 2, 2 * dim] by channel,
    [..., slots, 2 * 2 * groups] by token.
    """
    import torch
    from torch.nn.functional import pad

    least, most = _range(x, by_channel)
    least = least.to(torch.bfloat16).float()
    scale = ((most - least) / (2**bits - 1)).to(torch.bfloat16).float()
    spread = _widen(scale, x.shape[-1], by_channel)
    codes = ((x - _widen(least, x.shape[-1], by_channel)) / spread.clamp(min=1e-30)).round().clamp(0, 2**bits - 1)
    codes = pad(codes.to(torch.uint8), (0, _padded(x.shape[-1], bits) - x.shape[-1]))
    grids = torch.cat([scale, least], -2 if by_channel else -1)
    return pack(codes, bits), grids.to(torch.bfloat16).contiguous().view(torch.uint8)


def _restore(codes: Tensor, grids: Tensor, dim: int, bits: int, by_channel: bool) -> Tensor:
    import torch

    numbers = grids.contiguous().view(torch.bfloat16).float()
    scale, least = numbers.chunk(2, -2 if by_channel else -1)
    whole = unpack(codes, bits)[..., :dim].float()
    return whole * _widen(scale, dim, by_channel) + _widen(least, dim, by_channel)


def _range(x: Tensor, by_channel: bool) -> tuple[Tensor, Tensor]:
    """Smallest and largest: [..., 1, dim] by channel, [..., slots, groups] by token."""
    import torch

    if by_channel:
        return x.amin(-2, keepdim=True), x.amax(-2, keepdim=True)
    parts = x.split(GROUP, -1)
    return torch.stack([p.amin(-1) for p in parts], -1), torch.stack([p.amax(-1) for p in parts], -1)


def _widen(grid: Tensor, dim: int, by_channel: bool) -> Tensor:
    return grid if by_channel else grid.repeat_interleave(GROUP, -1)[..., :dim]
