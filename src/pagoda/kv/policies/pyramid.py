"""PyramidKV's budgets: lower layers look at much, higher ones at little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._divide import divide_layers, of_layers
from .base import Allocator

if TYPE_CHECKING:
    from torch import Tensor

STEEPEST = 1000.0


@dataclass(frozen=True)
class Pyramid(Allocator):
    """Layer budgets fall in a straight line from bottom to top; the top layer gets 1/``slope`` of the bottom one's
    (section 4.1: an arithmetic sequence). Wraps any method that ranks slots: ``snapkv(budget=0.25)+pyramid``.

    Deviations: ``slope`` is 3, where the paper leaves the top layer a twentieth of the mean (models of 32 layers and
    more; lantern has four, and facts are found again in the upper ones); a layer has 8 slots at least.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.02069"
    slope: float = 3.0

    def __post_init__(self) -> None:
        if not 1.0 <= self.slope <= STEEPEST:
            raise ConfigError(f"slope={self.slope!r}; give a number from 1.0 (equal layers) to {STEEPEST:g}")

    def allot(self, scores: Tensor, lens: Tensor, budget: int) -> Tensor:
        import torch

        weights = torch.linspace(self.slope, 1.0, len(lens)).tolist()
        given = divide_layers(weights, budget, min(8, budget), lens.amax(1).tolist())
        return of_layers(given, lens.shape[1]).to(lens.device)


POLICY = Pyramid
