"""CompressKV: only heads known to retrieve whole meanings may vote, and layers that suffer more get more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, looks_back, odd, share
from ._divide import divide_layers
from ._scored import Once, Scored
from ._vote import pool_mean, without_window
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class CompressKV(Scored, Once):
    """Score: attention of the last ``window`` queries in the ``top`` query heads of the layer with the highest semantic
    retrieval scores, the same for all its heads; layers share the budget above ``floor`` by their calibrated eviction
    error. Both come from ``pagoda calibrate compresskv MODEL``.

    Deviations: a layer's error is that of keeping a quarter of each head, measured on synthetic recall; the ``kernel``
    is as wide as snapkv's, for its reasons.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2508.02401"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.CALIBRATION})
    window: int = 16
    kernel: int = 13
    top: int = 2
    floor: float = 0.5
    allots = True

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        at_least("top", self.top, 1)
        odd("kernel", self.kernel)
        share("floor", self.floor)

    def why_not(self, num_heads: int, longest: int) -> str | None:
        if self.top <= num_heads:
            return None
        return (
            f"top={self.top} heads of a layer are to vote, and it has {num_heads}; give a number from 1 to {num_heads}"
        )

    def scores(self, inputs: Inputs) -> Tensor:
        ranks = inputs.calibration["query_heads"]
        best = ranks.topk(min(self.top, ranks.shape[-1])).indices.to(inputs.lens.device)
        votes = inputs.received_from(best)[:, None].expand(inputs.valid.shape)
        return pool_mean(without_window(votes, inputs.lens, self.window), self.kernel)

    def allot(self, inputs: Inputs, scores: Tensor, slots: int) -> Tensor:
        error = inputs.calibration["layers"].flatten().to(inputs.lens.device)
        return divide_layers(error, slots, round(self.floor * slots), inputs.lens)


POLICY = CompressKV
