"""Coupled quantization: four channels at once become one byte, the nearest of 256 learned centres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._windowed import Learned, Seen, WindowedCodec
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.page_code import Side
    from .base import Heads

COUPLED, CENTRES, ROUNDS = 4, 256, 8


@dataclass(frozen=True)
class CoupledQuantization(WindowedCodec):
    """CQ-4c8b of the paper, two bits a channel: channels depend on each other, so a group of them takes fewer bits
    together than each for itself (section 3). Centres are learned for every layer, head and group (k-means).

    Deviations: keys are coded with their rotary positions applied, as pages hold them; the k-means weighs all samples
    alike, where the paper weighs them by Fisher information.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2405.03917"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    plain: ClassVar[bool] = True
    window: int = 0

    @property
    def name(self) -> str:
        return f"coupled-{COUPLED}c8b"

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        sides = (("k_centres", heads.k_dim), ("v_centres", heads.v_dim))
        return {name: (heads.num_kv_heads, -(-dim // COUPLED), CENTRES, COUPLED) for name, dim in sides}

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return page_size * (-(-k_dim // COUPLED) + -(-v_dim // COUPLED))

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        parts = []
        for x, centres in ((k, seen.learned["k_centres"]), (v, seen.learned["v_centres"])):
            samples, heads = (one.flatten(0, 1) for one in (x, centres))
            codes = torch.stack(
                [nearest_by_pairs(_grouped(head.flatten(0, 1)), c) for head, c in zip(samples, heads, strict=True)]
            ).unflatten(0, x.shape[:2])  # [L, H, G, n * page_size]
            parts.append(codes.transpose(-1, -2).to(torch.uint8).reshape(*x.shape[:3], -1))
        return torch.cat(parts, -1)

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        import torch

        found, first = [], 0
        for dim, centres in ((k_dim, learned["k_centres"]), (v_dim, learned["v_centres"])):
            groups = -(-dim // COUPLED)
            codes = pages[..., first : first + page_size * groups].unflatten(-1, (page_size, groups)).int()
            first += page_size * groups
            heads = torch.arange(len(pages), device=pages.device)[:, None, None, None] * groups
            rows = (heads + torch.arange(groups, device=pages.device)) * CENTRES + codes
            found.append(centres.reshape(-1, COUPLED)[rows].flatten(-2)[..., :dim])
        return found[0], found[1]

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        values = page_size * -(-k_dim // COUPLED)
        return Side("coupled", (0,), learned["k_centres"]), Side("coupled", (values,), learned["v_centres"])

    @classmethod
    def learn(cls, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """``k_centres``, ``v_centres`` [L, H, groups, 256, 4]."""
        import torch

        return {
            name: torch.stack([torch.stack([_k_means(_grouped(head)) for head in layer]) for layer in x])
            for name, x in (("k_centres", k), ("v_centres", v))
        }


def _grouped(x: Tensor) -> Tensor:
    """``[N, dim]`` -> ``[groups, N, 4]``, zeros where dim is not a multiple."""
    from torch.nn.functional import pad

    return pad(x, (0, -x.shape[-1] % COUPLED)).unflatten(-1, (-1, COUPLED)).transpose(0, 1)


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """int64 ``[groups, N]``: the centre ``[groups, 256, 4]`` nearest to each sample ``[groups, N, 4]``."""
    return (x @ centres.transpose(1, 2) - 0.5 * centres.square().sum(-1)[:, None]).argmax(-1)


def nearest_by_pairs(x: Tensor, centres: Tensor) -> Tensor:
    """The same with sums made two by two, as the kernels make them: a page has its bytes whoever encodes it."""
    products = [a[:, :, None] * b[:, None] for a, b in zip(x.unbind(-1), centres.unbind(-1), strict=True)]
    squares = centres.square().unbind(-1)
    half = 0.5 * ((squares[0] + squares[1]) + (squares[2] + squares[3]))
    return (((products[0] + products[1]) + (products[2] + products[3])) - half[:, None]).argmax(-1)


def _k_means(x: Tensor) -> Tensor:
    """Centres ``[groups, 256, 4]``, begun at samples spread over the text; those that lose all samples stay."""
    import torch

    centres = x[:, torch.linspace(0, x.shape[1] - 1, CENTRES).long()].clone()
    for _ in range(ROUNDS):
        codes = nearest(x, centres)
        sums = torch.zeros_like(centres).scatter_add_(1, codes[..., None].expand_as(x), x)
        counts = torch.zeros(centres.shape[:2]).scatter_add_(1, codes, torch.ones_like(codes, dtype=torch.float32))
        centres = torch.where(counts[..., None] > 0, sums / counts.clamp(min=1)[..., None], centres)
    return centres


POLICY = CoupledQuantization
