"""Methods that ask the prompt's last queries once: what they look at stays, and so do they."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import looks_back, odd
from ._scored import Once, Scored
from ._vote import without_window
from .base import By, Held, Need, Ranking

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Voting(Scored, Once):
    """Score: attention of the prompt's last ``window`` queries, averaged over ``kernel`` neighbours. The window itself
    stays, and has no vote to spread.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED})
    by: ClassVar[By] = By.RECEIVED
    window: int = 16
    kernel: int = 13

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        odd("kernel", self.kernel)

    @property
    def pool(self) -> int:
        return self.kernel

    def votes(self, inputs: Inputs) -> Tensor:
        """float32 [L, H, N], or what expands to it."""
        return inputs.received

    def scores(self, inputs: Inputs) -> Tensor:
        return without_window(self.votes(inputs).expand(inputs.valid.shape), inputs.lens, self.window)

    def ranks(self, held: Held) -> Ranking | None:
        ranking = super().ranks(held)
        if ranking is not None:
            ranking.unvoted = self.window
        return ranking
