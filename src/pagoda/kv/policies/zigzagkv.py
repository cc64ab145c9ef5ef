"""ZigZagKV: layers whose attention is spread out get more of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._divide import divide_layers, of_layers
from ._voting import Voting
from .base import By, Held, Need, Ranking

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class ZigZagKV(Voting):
    """A layer's uncertainty is the mean, over its heads, of the fewest slots that hold ``held`` of the attention of the
    prompt's last ``window`` queries (LMBA, section 3); what lies above the ``floor`` share of the budget is divided in
    proportion. Slots within a layer are ranked as in the paper on SnapKV, by that attention, averaged over ``kernel``
    neighbours.

    Deviations: a layer's need is read off the window's attention summed over its queries, and off grouped heads
    together; heads of a layer get the same.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.09036"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED})
    by: ClassVar[By] = By.RECEIVED
    held: float = 0.9
    floor: float = 0.5
    allots = True

    def __post_init__(self) -> None:
        super().__post_init__()
        share("held", self.held)
        share("floor", self.floor)

    def votes(self, inputs: Inputs) -> Tensor:
        return inputs.received

    def allot(self, inputs: Inputs, scores: Tensor, slots: int) -> Tensor:
        return self._divided(inputs.received, slots, inputs.lens.amax(1).tolist()).to(inputs.lens.device)

    def ranks(self, held: Held) -> Ranking | None:
        received = held.received() if held.fewest == held.most else None
        ranking = None if received is None else super().ranks(held)
        if ranking is not None and received is not None:
            most = [held.most] * len(received)
            ranking.budget = self._divided(received, self.slots_after(held.prompt_len), most)
        return ranking

    def _divided(self, received: Tensor, slots: int, most: list[int]) -> Tensor:
        import numpy as np

        grown = np.cumsum(np.sort(received.cpu().numpy())[..., ::-1], -1, dtype=np.float64)  # torch: six times as long
        needed = (grown < self.held * grown[..., -1:]).sum(-1) + 1
        given = divide_layers(needed.mean(-1).tolist(), slots, round(self.floor * slots), most)
        return of_layers(given, received.shape[1])


POLICY = ZigZagKV
