"""Ada-KV's budgets: heads whose attention is spread out get slots of heads where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from .base import Allocator

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Ada(Allocator):
    """The best slots of a layer win, whichever head they are in, on top of a ``floor`` share for every head (algorithm
    1 and its safeguard). Wraps any method that ranks slots: ``snapkv(budget=0.25)+ada``.

    ``across_layers``: heads of all layers compete together, which the paper does not do.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.11550"
    floor: float = 0.2
    across_layers: bool = False

    def __post_init__(self) -> None:
        share("floor", self.floor)

    def allot(self, scores: Tensor, lens: Tensor, budget: int) -> Tensor:
        layers, heads, slots = scores.shape
        floors = lens.clamp(max=max(1, round(self.floor * budget)))
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        finite = scores.clamp(max=1e30)
        open_ = finite.masked_fill(rank < floors[..., None], -1e38).masked_fill(scores == -float("inf"), -1e38)
        shape = (1, layers * heads * slots) if self.across_layers else (layers, heads * slots)
        total = budget * layers * heads if self.across_layers else budget * heads
        left = total - floors.view(shape[0], -1).sum(-1)
        order = open_.view(shape).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        won = (order < left[:, None]) & (open_.view(shape) > -1e38)
        return floors + won.view(layers, heads, slots).sum(-1)


POLICY = Ada
