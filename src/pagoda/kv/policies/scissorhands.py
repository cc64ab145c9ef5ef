"""Scissorhands: what mattered lately will go on to matter, so what was ignored may go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, looks_back
from ._scored import Rolling, Scored
from .base import By, Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Scissorhands(Scored, Rolling):
    """Score: how many of the last ``window`` queries gave a slot at least the mean 1/t of the t slots that they see
    (algorithm 2 counts those that gave less); the newest ``keep_recent`` stay.

    Deviations: equals are decided by the attention received, where the paper leaves it open; one budget for all layers;
    the window is of 32 queries, where the paper's is of 400, and an act drops ``every`` slots, where the paper's drops
    half of the budget.

    Finds no fact again (recall is that of keeping nothing, 25 %): a count takes a query that looks hard at one place
    for no more than one that grazes many. Averaged over 13 neighbours as in snapkv, counts recall 30 % and sums of the
    attention (alisa's) 93 %.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.17118"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED, Need.WANTED})
    by: ClassVar[By] = By.COUNTED
    window: int = 32
    keep_recent: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        at_least("keep_recent", self.keep_recent, 1)

    def recent(self, slots: int) -> int:
        return self.keep_recent

    def scores(self, inputs: Inputs) -> Tensor:
        received = inputs.received
        return inputs.wanted + received / (received.amax(-1, keepdim=True) + 1.0)


POLICY = Scissorhands
