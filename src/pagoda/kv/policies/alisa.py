"""ALISA: a window in two halves, one that moves along and one that attention chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._pooled import Pooled
from ._scored import ScoredAndNewest
from .base import By, Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Alisa(Pooled, ScoredAndNewest):
    """Score: attention summed over the last ``window`` queries only, the paper's local sum (algorithm 1);
    ``recent_share`` of the budget is the static half.

    Deviations: sparse window attention alone. What the paper moves to host memory or recomputes later is dropped here.
    Sums are averaged over ``kernel`` neighbours as snapkv's are, for its reasons (the paper has ``kernel=1``: of
    lantern's recall at a quarter of the KV that keeps 25 %, and this 93 %).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.17312"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED})
    by: ClassVar[By] = By.RECEIVED
    window: int = 8

    def scores(self, inputs: Inputs) -> Tensor:
        return inputs.received


POLICY = Alisa
