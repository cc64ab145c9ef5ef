"""SnapKV: what the end of the prompt looks at is what the answer will look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import looks_back, odd
from ._scored import Once, Scored
from ._vote import pool_mean, without_window
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class SnapKV(Scored, Once):
    """Score: attention of the prompt's last ``window`` queries, averaged over ``kernel`` neighbours (section 4).

    The window itself stays. Deviations: grouped query heads vote together, since they share the KV that is dropped. The
    paper's kernels of 5 and 7 are for words of a large vocabulary; lantern spells numbers in digits, and of its recall
    at a quarter of the KV 13 keeps 96 to 100 %, 7 keeps 60 %.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.14469"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED})
    window: int = 16
    kernel: int = 13

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        odd("kernel", self.kernel)

    def scores(self, inputs: Inputs) -> Tensor:
        return pool_mean(without_window(inputs.received, inputs.lens, self.window), self.kernel)


POLICY = SnapKV
