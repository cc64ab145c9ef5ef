"""Eigen Attention: keys and values are stored by their coordinates in the few directions that matter to a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._spaces import leading
from ._windowed import Learned, Seen, WindowedCodec, bytes_of, numbers_of
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.page_code import Side
    from .base import Heads


@dataclass(frozen=True)
class EigenAttention(WindowedCodec):
    """A page holds ``keep`` of the coordinates (bfloat16) of its keys and values in bases that ``pagoda calibrate
    eigen_attention MODEL`` finds: eigenvectors of keys and queries together, and of values.

    Deviations: keys are taken after rotation, and all layers keep as many, where the paper looks for ranks layer by
    layer; pages are expanded to attend, which gives what attention in the small space gives.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2408.05646"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    keep: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.keep <= 1.0:
            raise ConfigError(f"keep={self.keep!r}; give a share of the dimensions (0.0 < keep <= 1.0)")

    @property
    def name(self) -> str:
        return f"eigen_attention{self.keep:g}"

    def _rank(self, dim: int) -> int:
        return max(1, round(self.keep * dim))

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return 2 * page_size * (self._rank(k_dim) + self._rank(v_dim))

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        count = heads.num_kv_heads
        return {"keys": (count, heads.k_dim, heads.k_dim), "values": (count, heads.v_dim, heads.v_dim)}

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        found = []
        for x, basis in ((k, seen.learned["keys"]), (v, seen.learned["values"])):
            found.append(bytes_of(x @ basis[:, :, None, :, : self._rank(x.shape[-1])].to(x.device)))
        return torch.cat(found, -1)

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        border = 2 * page_size * self._rank(k_dim)
        parts = pages[..., :border], pages[..., border : self.page_bytes(page_size, k_dim, v_dim)]
        k, v = (
            numbers_of(part, page_size) @ learned[name][:, None, :, : self._rank(dim)].to(part.device).transpose(-1, -2)
            for part, name, dim in zip(parts, ("keys", "values"), (k_dim, v_dim), strict=True)
        )
        return k, v

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        found, at = [], 0
        for dim, name in ((k_dim, "keys"), (v_dim, "values")):
            rank = self._rank(dim)
            found.append(Side("basis", (at, rank), learned[name][..., :rank].transpose(-1, -2)))
            at += 2 * page_size * rank
        return found[0], found[1]

    @classmethod
    def learn(cls, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        both = [x.transpose(-1, -2) @ x for x in (k, v)]
        return cls.bases(both[0], both[0], both[1])

    @staticmethod
    def bases(k: Tensor, q: Tensor, v: Tensor) -> dict[str, Tensor]:
        """``Learned`` from the second moments ``[L, H, D, D]`` of keys, queries and values: columns are directions,
        those that carry most first. Keys and queries count alike, whatever their lengths.
        """
        k, q = (x / x.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp(min=1e-12) for x in (k, q))
        return {"keys": leading(k + q), "values": leading(v)}


POLICY = EigenAttention
