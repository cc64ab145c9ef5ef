"""A2ATS: keys are looked up by their codewords, with rotary positions taken out, and scored against the query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._pages import PageSelection
from ._rotary import angles, turn
from .base import Need

CODE_BYTES = 2

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_marks import MarkAids
    from ...kernels.ops.page_scores import PageRule
    from .base import Heads


@dataclass(frozen=True)
class A2ATS(PageSelection):
    """Windowed rotary positions: beyond the window a query sees every key as if it were ``distance``
    tokens back, so that keys can be quantized before they are rotated: two bytes for each, the number of the nearest
    codeword in the metric of the model's own queries. Codebooks come from ``pagoda calibrate a2ats MODEL``.

    Deviations: only what is read is chosen so; attention itself keeps true positions, and keys and values stay where
    they are. Pages are fetched, not single tokens: a page is worth what its tokens get together.

    What lantern's recall loses (53 % of 324 cases) it loses to the codebook of 128 codewords a head (another of that
    size: 42 %): 512 bring 67 %, 1024 69 %, keys that are not quantized all. Each costs a product in every step.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.12665"
    remote: ClassVar[bool] = True
    marked: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    whole: ClassVar[str] = "it takes a key's position from its place, which an eviction changes"
    distance: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("distance", self.distance, 0, 1 << 20)

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return page_size * CODE_BYTES

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("codes", "turn", "peak")

    def given(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> Tensor:
        return learned["codes"]

    def turn(self, position: int | Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return angles(self.distance - position, learned["freq"][..., 0, :])

    @classmethod
    def complete(cls, learned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The nearest code y of x, in the metric M: the largest x M M' y' less half of |y M|^2."""
        import torch

        codes, metric = learned["codes"], learned["metric"]
        halves = (codes @ metric).square().sum(-1) / 2
        weights = torch.stack([torch.ones_like(halves), -halves], -2)
        return {**learned, "near": metric @ metric.transpose(-1, -2), "weights": weights}

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        count, dim = heads.num_kv_heads, heads.k_dim
        return {"codes": (count, 0, dim), "metric": (count, dim, dim), "freq": (1, dim // 2)}

    def mark_aids(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> MarkAids:
        from ...kernels.ops.page_marks import MarkAids

        return MarkAids(self.given(memory, learned), learned["weights"], learned["near"], learned["freq"][0])

    def sketch_as(self, keys: Tensor, memory: dict[str, Tensor], first: int, learned: Mapping[str, Tensor]) -> Tensor:
        import torch

        heads, pages, size, width = keys.shape
        at = torch.arange(first * size, (first + pages) * size, device=keys.device)
        still = turn(keys.view(heads, -1, width), -at, learned["freq"])
        return nearest(still, learned).view(heads, pages, size).to(torch.int16)


def nearest(still: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
    """int64 [H, N]: the codeword ``codes`` [H, C, D] of each key, by distance after ``metric`` [H, D, D]."""
    metric, codes = learned["metric"].to(still.device), learned["codes"].to(still.device)
    x, y = still @ metric, codes @ metric
    return (x @ y.transpose(1, 2) * 2 - y.square().sum(-1)[:, None]).argmax(-1)


POLICY = A2ATS
