"""ZipCache: tokens that attention wants get four bits a number, the others two."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._windowed import Learned, Seen, WindowedCodec, bytes_of, numbers_of, pack, rounded, take, unpack
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.page_code import Side

HIGH, LOW = 4, 2


@dataclass(frozen=True)
class ZipCache(WindowedCodec):
    """A token's saliency is its attention from probe queries, divided by the number of queries that could see it
    (section 4.2). Keys are quantized by channel; values by token after each channel is divided by the root of its
    largest number (channel-separable, section 4.1).

    Deviations: probes are the newest 16 queries and look at the raw tokens only, since older ones would have to be
    decoded; the ``salient`` share is taken of every page, whose bytes are fixed, and not of the whole text.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.14256"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES})
    probes: ClassVar[int] = 16
    salient: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        share("salient", self.salient)

    @property
    def name(self) -> str:
        return f"zipcache-{self.salient}"

    def _num_high(self, page_size: int) -> int:
        return round(self.salient * page_size)

    def _code_bytes(self, page_size: int, dim: int) -> tuple[int, int]:
        high = self._num_high(page_size)
        return high * -(-dim * HIGH // 8), (page_size - high) * -(-dim * LOW // 8)

    def _sizes(self, page_size: int, k_dim: int, v_dim: int) -> list[int]:
        """mask | K high, low, grid by channel | V high, low, channels' roots, grid by token"""
        return [
            -(-page_size // 8), *self._code_bytes(page_size, k_dim), 4 * k_dim,
            *self._code_bytes(page_size, v_dim), 2 * v_dim, 4 * page_size,
        ]  # fmt: skip

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return sum(self._sizes(page_size, k_dim, v_dim))

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        size = k.shape[-2]
        high = saliency(seen)[..., : k.shape[2] * size].unflatten(-1, (-1, size))
        order = high.argsort(dim=-1, descending=True, stable=True)
        mask = torch.zeros_like(order, dtype=torch.uint8).scatter_(-1, order[..., : self._num_high(size)], 1)
        place = (1 - mask).argsort(dim=-1, stable=True)  # salient ones first, each kind in the order of the text
        least, span = _range(k, -2)
        roots = rounded(v.abs().amax(-2, keepdim=True).sqrt())
        even = v / roots.clamp(min=1e-20)
        floor, width = _range(even, -1)
        parts = [pack(torch.nn.functional.pad(mask, (0, -size % 8)), 1)]
        parts += [*self._codes((k - least) / span.clamp(min=1e-30), place), bytes_of(torch.cat([least, span], -2))]
        parts += self._codes((even - floor) / width.clamp(min=1e-30), place)
        return torch.cat([*parts, bytes_of(roots), bytes_of(torch.cat([floor, width], -1))], -1)

    def _codes(self, unit: Tensor, place: Tensor) -> list[Tensor]:
        """Numbers in 0 … 1 as codes of both kinds, in the order ``place``."""
        moved = unit.gather(-2, place[..., None].expand_as(unit))
        high, low = moved.split([self._num_high(unit.shape[-2]), unit.shape[-2] - self._num_high(unit.shape[-2])], -2)
        return [_packed(high, HIGH), _packed(low, LOW)]

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        mask, k_high, k_low, k_grid, v_high, v_low, v_roots, v_grid = take(pages, *self._sizes(page_size, k_dim, v_dim))
        place = (1 - unpack(mask, 1)[..., :page_size]).argsort(dim=-1, stable=True)
        least, span = numbers_of(k_grid, 2).split(1, -2)
        keys = self._unit(k_high, k_low, place, k_dim) * span + least
        floor, width = numbers_of(v_grid, page_size).split(1, -1)
        values = (self._unit(v_high, v_low, place, v_dim) * width + floor) * numbers_of(v_roots, 1)
        return keys, values

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        starts = list(accumulate(self._sizes(page_size, k_dim, v_dim), initial=0))
        return Side("zip_keys", tuple(starts[:4])), Side("zip_values", (0, *starts[4:8]))

    def _unit(self, high: Tensor, low: Tensor, place: Tensor, dim: int) -> Tensor:
        import torch

        num_high = self._num_high(place.shape[-1])
        found = []
        for codes, num, bits in ((high, num_high, HIGH), (low, place.shape[-1] - num_high, LOW)):
            rows = codes.unflatten(-1, (num, -1)) if num else codes.new_zeros(*codes.shape[:-1], 0, -(-dim * bits // 8))
            found.append(unpack(rows, bits)[..., :dim].float() / (2**bits - 1))
        moved = torch.cat(found, -2)
        return torch.empty_like(moved).scatter_(-2, place[..., None].expand_as(moved), moved)


def saliency(seen: Seen) -> Tensor:
    """float32 ``[L, H, m]`` of the raw tokens: mean attention of the queries that see them, largest head of a group."""
    import torch

    assert seen.queries is not None
    assert seen.raw is not None
    layers, heads, num, dim = seen.raw.shape
    width = seen.queries.shape[1]
    queries = seen.queries.view(layers, width, heads, -1, dim).permute(0, 2, 3, 1, 4)
    logits = queries @ seen.raw[:, :, None].transpose(-1, -2) * seen.scale  # [L, H, G, w, m]
    at = torch.arange(num, device=logits.device)
    ahead = at > torch.arange(num - width, num, device=logits.device)[:, None]
    probs = logits.masked_fill(ahead, -torch.inf).softmax(-1).nan_to_num(0.0)
    mean: Tensor = probs.sum(3) / (~ahead).sum(0).clamp(min=1)
    return mean.amax(2)


def _range(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    least = rounded(x.amin(dim, keepdim=True))
    return least, rounded(x.amax(dim, keepdim=True) - least)


def _packed(unit: Tensor, bits: int) -> Tensor:
    import torch

    codes = (unit * (2**bits - 1)).round().clamp(0, 2**bits - 1).to(torch.uint8)
    return pack(torch.nn.functional.pad(codes, (0, -codes.shape[-1] % (8 // bits))), bits).flatten(-2)


POLICY = ZipCache
