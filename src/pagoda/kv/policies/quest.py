"""Quest: read the pages whose keys could match the query best, judged by each page's smallest and largest key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._pages import BFLOAT16, PageSelection

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class Quest(PageSelection):
    """Score: the upper bound of query times key over the page, from channel-wise minima and maxima (section 3.3), the
    highest of the group's heads.

    Deviations: every layer selects (the paper leaves the first two dense); heads of a group read the same pages.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.10774"
    remote: ClassVar[bool] = True
    marked: ClassVar[bool] = True

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return 2 * dim * BFLOAT16

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("halves", "split")

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        from ...kernels.ops.page_scores import corners

        return corners(keys)[:, :, None]  # [H, n, 1, 2 D]


POLICY = Quest
