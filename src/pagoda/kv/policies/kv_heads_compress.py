"""Fewer KV heads: several heads store one head's worth of coordinates in directions that they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._spaces import leading
from ._windowed import Learned, Seen, WindowedCodec, bytes_of, numbers_of
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.types import KVFormat
    from ...kernels.page_code import Side
    from .base import Heads

GROUPS = (2, 4)
"""Heads that may be joined: ``pagoda calibrate`` looks at both where they divide the heads."""


@dataclass(frozen=True)
class KVHeadsCompress(WindowedCodec):
    """The keys of ``group`` neighbouring heads, side by side, are stored by as many coordinates as one head has, in the
    leading directions of what they hold (a low-rank head for a group); values alike. Directions come from
    ``pagoda calibrate kv_heads_compress MODEL``. Each page of the group has its share of the numbers (bfloat16).

    Deviations: rotated keys are compressed, but the model's weights stay as they are and nothing is trained afterwards,
    so half the heads is what it bears.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.07056"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    group: int = 2
    """2 or 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group not in GROUPS:
            raise ConfigError(f"group={self.group!r}; accepted: {', '.join(map(str, GROUPS))}")

    @property
    def name(self) -> str:
        return f"kv_heads_compress{self.group}"

    def why_not(self, fmt: KVFormat) -> str | None:
        if fmt.num_kv_heads % self.group:
            return f"its {fmt.num_kv_heads} kv-heads do not make groups of {self.group}"
        if fmt.k_dim % self.group or fmt.v_dim % self.group:
            return f"its heads of {fmt.k_dim} and {fmt.v_dim} channels cannot be divided by {self.group}"
        return None

    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        return 2 * page_size * (k_dim // self.group + v_dim // self.group)

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        group, sides = self.group, (("keys", heads.k_dim), ("values", heads.v_dim))
        return {f"{name}{group}": (heads.num_kv_heads // group, group * dim, dim) for name, dim in sides}

    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        import torch

        found = [
            self._small(x, seen.learned[f"{name}{self.group}"].to(x.device)) for x, name in ((k, "keys"), (v, "values"))
        ]
        return torch.cat([bytes_of(x) for x in found], -1)

    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        border = 2 * page_size * (k_dim // self.group)
        parts = pages[..., :border], pages[..., border : self.page_bytes(page_size, k_dim, v_dim)]
        k, v = (
            self._whole(numbers_of(part, page_size), learned[f"{name}{self.group}"].to(part.device), dim)
            for part, name, dim in zip(parts, ("keys", "values"), (k_dim, v_dim), strict=True)
        )
        return k, v

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side]:
        from ...kernels.page_code import Side

        found, at = [], 0
        for dim, name in ((k_dim, "keys"), (v_dim, "values")):
            basis = learned[f"{name}{self.group}"]  # [A, g D, D] -> [A * g, D, D]: coordinates to the columns of a head
            table = basis.unflatten(1, (self.group, dim)).flatten(0, 1).transpose(-1, -2)
            found.append(Side("basis", (at, dim, self.group), table))
            at += 2 * page_size * (dim // self.group)
        return found[0], found[1]

    def _small(self, x: Tensor, basis: Tensor) -> Tensor:
        """``[L, H, n, page_size, D]``, basis ``[L, H / g, g D, D]`` -> ``[L, H, n, page_size, D / g]``."""
        wide = x.unflatten(1, (-1, self.group)).movedim(2, -2).flatten(-2)  # [L, A, n, page_size, g D]
        shares = (wide @ basis[:, :, None]).unflatten(-1, (self.group, -1))
        return shares.movedim(-2, 2).flatten(1, 2)

    def _whole(self, x: Tensor, basis: Tensor, dim: int) -> Tensor:
        """One layer ``[H, n, page_size, D / g]`` -> ``[H, n, page_size, D]``."""
        wide = x.unflatten(0, (-1, self.group)).movedim(1, -2).flatten(-2)  # [A, n, page_size, D]
        back = (wide @ basis[:, None].transpose(-1, -2)).unflatten(-1, (self.group, dim))
        return back.movedim(-2, 1).flatten(0, 1)

    @classmethod
    def learn(cls, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        found = {}
        for group in (group for group in GROUPS if k.shape[1] % group == 0):
            for name, x in (("keys", k), ("values", v)):
                wide = x.unflatten(1, (-1, group)).movedim(2, -2).flatten(-2)  # [L, A, N, g D]
                found[f"{name}{group}"] = leading(wide.transpose(-1, -2) @ wide)[..., : x.shape[-1]]
        return found


POLICY = KVHeadsCompress
