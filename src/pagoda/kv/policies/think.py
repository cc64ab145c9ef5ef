"""ThinK: a key's channels that recent queries do not use are not stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._windowed import Learned, Seen, WindowedCodec, bytes_of, numbers_of, pack, take, unpack
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.page_code import Side


@dataclass(frozen=True)
class Think(WindowedCodec):
    """Of a page's keys the ``channels`` share stays whose part in q·k is largest, judged by the product of the norms of
    the newest 32 queries and of the page's keys in that channel (section 3.2), for each head; the others read as 0.
    What stays, and the values, are bfloat16.

    Deviation: channels are chosen for every page when it is encoded, and not once for the prompt, so that pages are
    final; a page says which in a bit mask.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.21018"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES})
    probes: ClassVar[int] = 32
    channels: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        share("channels", self.channels)

    @property
    def name(self) -> str:
        return f"think-{self.channels}"

    def _num_kept(self, k_dim: int) -> int:
        return max(1, round(self.channels * k_dim))

    def _sizes(self, page_size: int, k_dim: int, v_dim: int) -> list[int]:
        """mask of channels | what is kept of K | V"""
        return [-(-k_dim // 8), 2 * page_size * self._num_kept(k_dim), 2 * page_size * v_dim]

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return sum(self._sizes(page_size, k_dim, v_dim))

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        assert seen.queries is not None
        heads, dim = k.shape[1], k.shape[-1]
        queries = seen.queries.unflatten(2, (heads, -1)).norm(dim=(1, 3))  # [L, H, Dk]
        use = queries[:, :, None] * k.norm(dim=-2)  # [L, H, n, Dk]
        best = use.argsort(dim=-1, descending=True, stable=True)[..., : self._num_kept(dim)]
        mask = torch.zeros_like(use, dtype=torch.uint8).scatter_(-1, best, 1)
        kept = k.gather(-1, _columns(mask, self._num_kept(dim), k.shape[-2]))
        return torch.cat([pack(torch.nn.functional.pad(mask, (0, -dim % 8)), 1), bytes_of(kept), bytes_of(v)], -1)

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        mask, kept, values = take(pages, *self._sizes(page_size, k_dim, v_dim))
        columns = _columns(unpack(mask, 1)[..., :k_dim], self._num_kept(k_dim), page_size)
        numbers = numbers_of(kept, page_size)
        keys = numbers.new_zeros(*numbers.shape[:-1], k_dim).scatter_(-1, columns, numbers)
        return keys, numbers_of(values, page_size)

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        mask, kept, _ = self._sizes(page_size, k_dim, v_dim)
        return Side("columns", (0, mask, self._num_kept(k_dim))), Side("basis", (mask + kept, v_dim))


def _columns(mask: Tensor, num: int, page_size: int) -> Tensor:
    """int64 ``[..., page_size, num]``: the columns that a uint8 mask ``[..., dim]`` keeps, ascending, for each slot."""
    columns = (1 - mask).argsort(dim=-1, stable=True)[..., :num]
    return columns[..., None, :].expand(*columns.shape[:-1], page_size, num)


POLICY = Think
