"""CompressKV: only heads known to retrieve whole meanings may vote, and layers that suffer more get more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, share
from ._divide import divide_layers, of_layers
from ._voting import Voting
from .base import By, Held, Need, Ranking

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs
    from .base import Heads


@dataclass(frozen=True)
class CompressKV(Voting):
    """Score: attention of the last ``window`` queries in the ``top`` query heads of the layer with the highest semantic
    retrieval scores, the same for all its heads; layers share the budget above ``floor`` by their calibrated eviction
    error. Both come from ``pagoda calibrate compresskv MODEL``.

    Deviations: a layer's error is that of keeping a quarter of each head, measured on synthetic recall; the ``kernel``
    is as wide as snapkv's, for its reasons.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2508.02401"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.CALIBRATION})
    by: ClassVar[By] = By.VOTED
    top: int = 2
    floor: float = 0.5
    allots = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("top", self.top, 1)
        share("floor", self.floor)

    def why_not(self, num_heads: int, longest: int) -> str | None:
        if self.top <= num_heads:
            return None
        return (
            f"top={self.top} heads of a layer are to vote, and it has {num_heads}; give a number from 1 to {num_heads}"
        )

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        return {"query_heads": (heads.num_q_heads,), "layers": (1,)}

    def votes(self, inputs: Inputs) -> Tensor:
        return inputs.received_from(self._voters(inputs.calibration).to(inputs.lens.device))[:, None]

    def allot(self, inputs: Inputs, scores: Tensor, slots: int) -> Tensor:
        given = self._divided(inputs.calibration, slots, inputs.lens.amax(1).tolist())
        return of_layers(given, inputs.num_kv_heads).to(inputs.lens.device)

    def ranks(self, held: Held) -> Ranking | None:
        ranking = super().ranks(held) if held.fewest == held.most else None
        if ranking is not None:
            ranking.voters = self._voters(held.calibration).contiguous()
            layers, heads = held.heads
            given = self._divided(held.calibration, self.slots_after(held.prompt_len), [held.most] * layers)
            ranking.budget = of_layers(given, heads)
        return ranking

    def _voters(self, calibration: Mapping[str, Tensor]) -> Tensor:
        """int64 [L, top]."""
        ranks = calibration["query_heads"]
        return ranks.topk(min(self.top, ranks.shape[-1])).indices

    def _divided(self, calibration: Mapping[str, Tensor], slots: int, most: list[int]) -> list[int]:
        return divide_layers(calibration["layers"].flatten().tolist(), slots, round(self.floor * slots), most)


POLICY = CompressKV
