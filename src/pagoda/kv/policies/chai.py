"""CHAI: heads whose attention looks alike share one score map, and keys are stored for one of them only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._windowed import Learned, Seen, WindowedCodec, bytes_of, numbers_of
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.types import KVFormat
    from ...kernels.page_code import Side
    from .base import Heads


@dataclass(frozen=True)
class CHAI(WindowedCodec):
    """The heads of a layer make ``keys`` times as many clusters as there are heads; all of a cluster attend with the
    query and the keys of its representative, each to its own values. Clusters come from ``pagoda calibrate
    chai MODEL``. A page has its head's values (bfloat16) and its share of the representatives' keys.

    Deviations: who belongs together is found once for a model (the paper's CHAI-static) and not from the first tokens
    of each request; every layer has as many clusters; of grouped queries, those of a kv-head stay together.

    For models of many heads (the paper's have 32 and more): lantern has two kv-heads a layer, and half of them is one
    key for all, which recalls 4 %; ``keys=1.0`` is exact.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.08058"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    alone: ClassVar[str] = "its heads have no keys of their own to be judged by"
    keys: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.keys <= 1.0:
            raise ConfigError(f"keys={self.keys!r}; give a share of the heads (0.0 < keys <= 1.0)")

    @property
    def name(self) -> str:
        return f"chai{self.keys:g}"

    def why_not(self, fmt: KVFormat) -> str | None:
        if fmt.num_kv_heads == 1:
            return "it has one kv-head, and there is nobody to share keys with"
        if (self.keys * fmt.num_kv_heads) % 1 or (self.keys * fmt.k_dim) % 1:
            return f"keys={self.keys:g} of its {fmt.num_kv_heads} kv-heads with {fmt.k_dim} channels is no whole number"
        return None

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        return {"reps": (heads.num_kv_heads, heads.num_kv_heads)}

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return 2 * page_size * (int(self.keys * k_dim) + v_dim)

    def of(self, reps: Tensor) -> Tensor:
        """int64 ``[..., H]``: each head's representative; reps ``[..., H, H]``, a row for each number of clusters."""
        return reps[..., int(self.keys * reps.shape[-1]) - 1, :].long()

    def share(self, q: Tensor, k: Tensor, learned: Learned) -> tuple[Tensor, Tensor]:
        mine = self.of(learned["reps"]).to(q.device)
        return q.unflatten(1, (k.shape[1], -1))[:, mine].flatten(1, 2), k[:, mine]

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        heads, num = k.shape[1], int(self.keys * k.shape[1])
        stored = []
        for layer, mine in zip(k, self.of(seen.learned["reps"]), strict=True):
            wide = layer[_distinct(mine, num).to(k.device)].movedim(0, -2).flatten(-2)  # [n, page_size, num * D]
            stored.append(wide.unflatten(-1, (heads, -1)).movedim(-2, 0))
        return torch.cat([bytes_of(torch.stack(stored)), bytes_of(v)], -1)

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        num = int(self.keys * len(pages))
        border = 2 * page_size * int(self.keys * k_dim)
        wide = numbers_of(pages[..., :border], page_size).movedim(0, -2).flatten(-2).unflatten(-1, (num, k_dim))
        at = self._rows(learned["reps"]).to(pages.device)
        return wide.movedim(-2, 0)[at], numbers_of(pages[..., border:], page_size)

    def _rows(self, reps: Tensor) -> Tensor:
        """int64 ``[H]``: which of the stored keys are each head's."""
        mine = self.of(reps)
        rows: Tensor = (_distinct(mine, int(self.keys * len(mine)))[None] == mine[:, None]).long().argmax(-1)
        return rows

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        width = int(self.keys * k_dim)
        keys = Side("spread", (0, width), self._rows(learned["reps"])[:, None])
        return keys, Side("basis", (2 * page_size * width, v_dim))

    @classmethod
    def learn(cls, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        flat = k.flatten(2)
        return cls.clusters(flat @ flat.transpose(1, 2))

    @staticmethod
    def clusters(likeness: Tensor) -> dict[str, Tensor]:
        """``Learned``: ``reps`` float32 ``[L, H, H]``, row c - 1 for c clusters, from ``[L, H, H]``: the best medoid
        for all, then one more at a time, whichever helps most.
        """
        import torch

        norm = likeness.diagonal(dim1=1, dim2=2).clamp(min=1e-12).sqrt()
        alike = likeness / norm[:, :, None] / norm[:, None]
        layers = []
        for one in alike:
            chosen: list[int] = []
            rows = []
            for _ in range(len(one)):
                gains = [one[:, [*chosen, h]].amax(1).sum() if h not in chosen else -torch.inf for h in range(len(one))]
                chosen.append(int(torch.tensor(gains).argmax()))
                own = one.clone()
                own[chosen, chosen] = 2.0  # a representative stands for itself
                rows.append(torch.tensor(chosen)[own[:, chosen].argmax(1)])
            layers.append(torch.stack(rows))
        return {"reps": torch.stack(layers).float()}


def _distinct(mine: Tensor, num: int) -> Tensor:
    """int64 ``[num]``: the representatives, ascending."""
    return mine.unique()[:num]


POLICY = CHAI
