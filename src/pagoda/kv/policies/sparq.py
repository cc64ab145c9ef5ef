"""SparQ: the query's largest components alone tell well enough which keys it will like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._pages import PageSelection

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class SparQ(PageSelection):
    """Approximate attention from the ``rank`` channels in which the group's queries are largest (section 4, step 1),
    summed over each page.

    Keys are held a second time, channel by channel (section 4.1): what is looked at lies side by side. They are four
    bits with a scale for each token, a quarter of what the paper reads (lantern's KL is 0.017, with bytes 0.014).

    Deviations: products are those of the rounded keys; pages are fetched, not single tokens; what is not fetched is
    left out, where the paper adds the mean value in its place (step 3).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.04985"
    remote: ClassVar[bool] = True
    marked: ClassVar[bool] = True
    rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("rank", self.rank, 1, 1 << 16)

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return page_size * (dim / 2 + 1)

    def looked_bytes(self, page_size: int, dim: int) -> float:
        return page_size * (min(self.rank, dim) / 2 + 1)

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("columns", "thin", "softmax", sum_heads=True, rank=self.rank)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        from ...kernels.ops.page_scores import in_columns

        return in_columns(keys)  # [H, n, D + 2, page_size / 2]


POLICY = SparQ
