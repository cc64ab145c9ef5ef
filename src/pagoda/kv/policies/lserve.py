"""LServe: pages are judged by the best of their parts, and one choice serves several steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._pages import BFLOAT16, PageSelection

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class LServe(PageSelection):
    """Score: the highest upper bound of query times key over the page's logical pages of ``part`` slots, from their
    channel-wise minima and maxima (hierarchical paging, section 3.5); it is computed every ``reuse`` steps (reusable
    selection, section 3.6).

    Deviations: this is the dynamic half. The static one, heads that only see sinks and a window, is an eviction here:
    ``duo_attention+lserve``. Prefill is not sparse.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2502.14866"
    remote: ClassVar[bool] = True
    marked: ClassVar[bool] = True
    reuse: int = 4
    part: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("part", self.part, 1)

    def why_not(self, page_size: int) -> str | None:
        if page_size % self.part:
            return f"part={self.part} does not divide pages of {page_size} slots; give a divisor"
        return None

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return -(-page_size // self.part) * 2 * dim * BFLOAT16

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("halves", "split")

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        from ...kernels.ops.page_scores import corners

        heads, pages, size, width = keys.shape
        return corners(keys.view(heads, pages, size // self.part, self.part, width))  # [H, n, parts, 2 D]


POLICY = LServe
