"""CORM: neighbouring queries are alike, so a key that no recent query wanted will not be wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._scored import Rolling, Scored
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs, LayerInputs


@dataclass(frozen=True)
class Corm(Scored, Rolling):
    """A slot stays if any of the last ``window`` queries gave it more than the mean 1/t of the t slots that it sees
    (algorithm 1); the window stays. How many that are differs by head: the budget is a ceiling, not a target.

    Deviation: the paper has no ceiling; above it, slots with more attention win.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.15949"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.KEYS})
    window: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("window", self.window, 1)

    def score(self, layer: LayerInputs) -> Tensor:
        attention = layer.attention
        seen = (attention > 0).sum(-1, keepdim=True).clamp(min=1)
        wanted = (attention > 1.0 / seen).flatten(1, 2).any(1)
        return attention.sum((1, 2)).masked_fill(~wanted, -1.0)

    def allot(self, inputs: Inputs, scores: Tensor, slots: int) -> Tensor:
        return (scores >= 0).sum(-1).clamp(max=slots)

    allots = True


POLICY = Corm
