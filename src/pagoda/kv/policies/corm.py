"""CORM: neighbouring queries are alike, so a key that no recent query wanted will not be wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import looks_back
from ._scored import Rolling, Scored
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Corm(Scored, Rolling):
    """A slot stays if any of the last ``window`` queries gave it at least the mean 1/t of the t slots that it sees
    (algorithm 1); the window stays. How many that are differs by head: the budget is a ceiling, not a target.

    Deviation: the paper has no ceiling; above it, slots with more attention win.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.15949"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED, Need.WANTED})
    least: ClassVar[float] = 0.0
    window: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)

    def scores(self, inputs: Inputs) -> Tensor:
        return inputs.received.masked_fill(inputs.wanted == 0, -1.0)

    allots = True  # by what is wanted


POLICY = Corm
