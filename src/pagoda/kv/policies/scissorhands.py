"""Scissorhands: what mattered lately will go on to matter, so what was ignored may go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._scored import Rolling, Scored
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import LayerInputs


@dataclass(frozen=True)
class Scissorhands(Scored, Rolling):
    """Score: minus the number of the last ``window`` queries that gave a slot less than the mean 1/t of the t slots
    that they see (algorithm 2); the newest ``keep_recent`` stay.

    Deviation: equals are decided by the attention received, where the paper leaves it open; one budget for all layers.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.17118"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.KEYS})
    window: int = 64
    keep_recent: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("window", self.window, 1)
        at_least("keep_recent", self.keep_recent, 1)

    def recent(self, slots: int) -> int:
        return self.keep_recent

    def score(self, layer: LayerInputs) -> Tensor:
        attention = layer.attention
        seen = (attention > 0).sum(-1, keepdim=True).clamp(min=1)
        ignored = (attention < 1.0 / seen).sum((1, 2))
        return attention.mean((1, 2)) - ignored


POLICY = Scissorhands
