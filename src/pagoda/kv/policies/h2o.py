"""H2O: the tokens that attention has dwelt on most, and the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._scored import ScoredAndNewest
from .base import By, Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class H2O(ScoredAndNewest):
    """Score: attention probability summed over every query so far (section 4, algorithm 1).

    ``recent_share`` of the budget goes to the newest tokens, the rest to heavy hitters.
    Deviation: acts every ``every`` tokens, not after each; grouped query heads vote together.

    Finds no fact again (recall is that of keeping nothing, 25 %): a sum over all queries hardly knows the question, the
    last few of them. Averaged over 13 neighbours as in snapkv it still recalls 33 %.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.14048"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBS})
    by: ClassVar[By] = By.MASS

    def scores(self, inputs: Inputs) -> Tensor:
        assert inputs.mass is not None
        return inputs.mass


POLICY = H2O
