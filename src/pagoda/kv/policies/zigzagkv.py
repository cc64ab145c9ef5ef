"""ZigZagKV: layers whose attention is spread out get more of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import looks_back, odd, share
from ._divide import divide_layers
from ._scored import Once, Scored
from ._vote import pool_mean, without_window
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class ZigZagKV(Scored, Once):
    """A layer's uncertainty is the mean, over its heads, of the fewest slots that hold ``held`` of the attention of the
    prompt's last ``window`` queries (LMBA, section 3); what lies above the ``floor`` share of the budget is divided in
    proportion. Slots within a layer are ranked as in SnapKV.

    Deviations: a layer's need is read off the window's attention summed over its queries, and off grouped heads
    together; heads of a layer get the same.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.09036"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED})
    window: int = 16
    kernel: int = 13
    held: float = 0.9
    floor: float = 0.5
    allots = True

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        odd("kernel", self.kernel)
        share("held", self.held)
        share("floor", self.floor)

    def scores(self, inputs: Inputs) -> Tensor:
        import numpy as np

        mass = inputs.received
        grown = np.cumsum(np.sort(mass.cpu().numpy())[..., ::-1], -1, dtype=np.float64)  # torch sorts six times as long
        needed = (grown < self.held * grown[..., -1:]).sum(-1) + 1
        inputs.memory["needed"] = mass.new_tensor(needed.mean(-1))
        return pool_mean(without_window(mass, inputs.lens, self.window), self.kernel)

    def allot(self, inputs: Inputs, scores: Tensor, slots: int) -> Tensor:
        needed = inputs.memory.pop("needed")
        return divide_layers(needed, slots, round(self.floor * slots), inputs.lens)


POLICY = ZigZagKV
