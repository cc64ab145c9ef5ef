"""Block floating point with outliers rearranged: channels of like size lie side by side and share an exponent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._budget import at_least
from ._windowed import Learned, Seen, WindowedCodec, pack, take, unpack
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.page_code import Side
    from .base import Heads

LEAST, MOST = 2.0**-113, (2 - 2.0**-23) * 2.0**127
"""Of the largest number of a block: so that steps of all mantissas are normal floats."""


@dataclass(frozen=True)
class BlockFloats(WindowedCodec):
    """``block`` numbers share an eight-bit exponent; each has a mantissa of ``mantissa`` bits (2, 4 or 8), its sign
    among them. Channels are sorted by their mean size, found by calibration for every head, so that a block has large
    ones or small ones (section 4). ``rearrange=False`` is plain block floating point, the control.

    Deviation: the paper permutes the rows of the weights once and for all, which costs nothing at run time; here pages
    are permuted when they are encoded and decoded, so that the weights stay everybody's. Values are sorted like keys.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.20137"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    plain: ClassVar[bool] = True
    window: int = 0
    block: int = 16
    mantissa: int = 4
    rearrange: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("block", self.block, 1)
        if self.mantissa not in (2, 4, 8):
            raise ConfigError(f"mantissa={self.mantissa!r}; accepted: 2, 4, 8")

    @property
    def name(self) -> str:
        return f"bfp-{self.block}-{self.mantissa}{'' if self.rearrange else '-plain'}"

    def _slot_bytes(self, dim: int) -> tuple[int, int]:
        """(mantissas, exponents)"""
        return -(-dim * self.mantissa // 8), -(-dim // self.block)

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        return {"k_order": (heads.num_kv_heads, heads.k_dim), "v_order": (heads.num_kv_heads, heads.v_dim)}

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return page_size * sum(self._slot_bytes(k_dim) + self._slot_bytes(v_dim))

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        parts = []
        for x, order in ((k, "k_order"), (v, "v_order")):
            if self.rearrange:
                at = seen.learned[order].long()[:, :, None, None].expand_as(x)
                x = x.gather(-1, at)
            parts += self._encode(x)
        return torch.cat(parts, -1)

    def _encode(self, x: Tensor) -> list[Tensor]:
        import torch
        from torch.nn.functional import pad

        dim, half = x.shape[-1], 2 ** (self.mantissa - 1)
        block = min(self.block, dim)
        blocks = pad(x, (0, -dim % block)).unflatten(-1, (-1, block))
        largest = blocks.abs().amax(-1).nan_to_num(MOST, MOST).clamp(min=LEAST)
        exponent = torch.frexp(largest).exponent  # it is below 2 ** exponent
        step = torch.exp2((exponent - (self.mantissa - 1)).float())[..., None]
        # What is no number has the highest exponent and the lowest code, which together are read as -inf.
        codes = (blocks / step).round().clamp(-half, half - 1).nan_to_num(-half) + half
        codes = codes.to(torch.uint8).flatten(-2)[..., :dim]
        codes = pad(codes, (0, -dim % (8 // self.mantissa)))
        return [pack(codes, self.mantissa).flatten(-2), (exponent + 127).to(torch.uint8).flatten(-2)]

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        sizes = [page_size * num for dim in (k_dim, v_dim) for num in self._slot_bytes(dim)]
        parts, found = take(pages, *sizes), []
        for (codes, exponents), dim, order in zip(
            (parts[:2], parts[2:]), (k_dim, v_dim), ("k_order", "v_order"), strict=True
        ):
            x = self._decode(codes.unflatten(-1, (page_size, -1)), exponents.unflatten(-1, (page_size, -1)), dim)
            if self.rearrange:
                at = learned[order].long()[:, None, None].expand_as(x)
                x = x.new_empty(x.shape).scatter_(-1, at, x)
            found.append(x)
        return found[0], found[1]

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        found, at = [], 0
        for dim, order in ((k_dim, "k_order"), (v_dim, "v_order")):
            codes, exponents = (page_size * num for num in self._slot_bytes(dim))
            table = learned[order] if self.rearrange else None
            found.append(Side("block_floats", (self.mantissa, at, at + codes, self.block), table))
            at += codes + exponents
        return found[0], found[1]

    def _decode(self, codes: Tensor, exponents: Tensor, dim: int) -> Tensor:
        import torch

        steps = torch.exp2(exponents.float() - 127 - (self.mantissa - 1))
        steps = steps.repeat_interleave(min(self.block, dim), -1)[..., :dim]
        return (unpack(codes, self.mantissa)[..., :dim].float() - 2 ** (self.mantissa - 1)) * steps

    @classmethod
    def learn(cls, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """``k_order``, ``v_order`` [L, H, dim]: channels by mean size, the largest first."""
        return {
            name: x.abs().mean(2).argsort(dim=-1, descending=True, stable=True).float()
            for name, x in (("k_order", k), ("v_order", v))
        }


POLICY = BlockFloats
