"""CORM: neighbouring queries are alike, so a key that no recent query wanted will not be wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._pooled import Pooled
from ._scored import Rolling
from .base import By, Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Corm(Pooled, Rolling):
    """A slot stays if any of the last ``window`` queries gave it at least the mean 1/t of the t slots that it sees
    (algorithm 1); the window stays. How many that are differs by head: the budget is a ceiling, not a target.

    Deviations: the paper has no ceiling; above it, slots with more attention win. A wanted slot speaks for ``kernel``
    neighbours, as snapkv's do and for its reasons (the paper has ``kernel=1``: of lantern's recall at a quarter of the
    KV that keeps 25 %, and this 91 %).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.15949"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED, Need.WANTED})
    by: ClassVar[By] = By.WANTED
    least: ClassVar[float] = 1e-30  # nobody in reach was wanted

    def scores(self, inputs: Inputs) -> Tensor:
        return inputs.received.masked_fill(inputs.wanted == 0, 0.0)

    allots = True  # by what is wanted


POLICY = Corm
