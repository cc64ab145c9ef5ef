"""Methods that ask the prompt's last queries once: what they look at stays, and so do they."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._pooled import Pooled
from ._scored import Once
from ._vote import without_window
from .base import By, Held, Need, Ranking

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Voting(Pooled, Once):
    """Score: the most attention that any of the prompt's last ``window`` queries gives, averaged over ``kernel``
    neighbours. The window itself stays, and has no vote to spread.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES})
    by: ClassVar[By] = By.LARGEST

    def votes(self, inputs: Inputs) -> Tensor:
        """float32 [L, H, N], or what expands to it."""
        return inputs.largest

    def scores(self, inputs: Inputs) -> Tensor:
        return without_window(self.votes(inputs).expand(inputs.valid.shape), inputs.lens, self.window)

    def ranks(self, held: Held) -> Ranking | None:
        ranking = super().ranks(held)
        if ranking is not None:
            ranking.unvoted = self.window
        return ranking
