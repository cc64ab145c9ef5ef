"""TokenSelect: heads vote on tokens with their softmaxed scores, and alike queries read what was chosen before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._pages import PageSelection, byte_marks

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class TokenSelect(PageSelection):
    """Score: softmax of all products, summed over the group's heads (soft voting, section 4.2). A query whose
    cosine to the one that last chose is above ``alike`` reuses its choice (selection cache, section 4.3).

    Keys are held a second time, as bytes with a scale each: half of what is read of them, and side by side.

    Deviations: products are those of the rounded keys; votes are summed over pages, and pages are fetched, not single
    tokens; the heads of a group vote for themselves, where the paper lets all heads of a layer read the same tokens; no
    first tokens are read for sure.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2411.02886"
    remote: ClassVar[bool] = True
    marked: ClassVar[bool] = True
    alike: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        share("alike", self.alike)

    @property
    def likeness(self) -> float:
        return self.alike

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return byte_marks(page_size, dim)

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("bytes", weigh="softmax", sum_heads=True)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        from ...kernels.ops.page_scores import in_bytes

        return in_bytes(keys)


POLICY = TokenSelect
