"""ShadowKV: the mean key of a chunk stands for it, and chunks that no mean stands for are always read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, share
from ._pages import BFLOAT16, PageSelection

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class ShadowKV(PageSelection):
    """Score: softmax of query times landmark (the mean of ``chunk`` keys, in bfloat16), the highest of the group's
    heads (section 4.2, algorithm 2). The ``outliers`` share of the pages to read goes to those with keys that are
    least like their chunk's mean.

    Deviations: what is here is the choice of chunks. Pages are fetched, each worth what its chunks are together. Keys
    stay whole in their pages, where the paper keeps low-rank ones and rebuilds the chosen; values move to another tier
    with their keys (``shadowkv+offload``).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.21465"
    remote: ClassVar[bool] = True
    marked: ClassVar[bool] = True
    outliers: float = 0.1
    chunk: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        share("outliers", self.outliers)
        at_least("chunk", self.chunk, 1)

    def why_not(self, page_size: int) -> str | None:
        if page_size > self.chunk and page_size % self.chunk:
            return f"chunk={self.chunk} does not divide pages of {page_size} slots; give a divisor, or {page_size}"
        return None

    def chunks(self, page_size: int) -> int:
        """Of a page; a small one is one by itself."""
        return max(1, page_size // self.chunk)

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return self.chunks(page_size) * (dim + 1) * BFLOAT16

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("halves", weigh="softmax")

    def num_outliers(self, full: int) -> int:
        return int(self.outliers * self.num_pages(full))

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        from ...kernels.ops.page_scores import means

        heads, pages, size, width = keys.shape
        return means(keys.reshape(heads, pages, self.chunks(size), -1, width)).bfloat16()  # [H, n, chunks, D + 1]


POLICY = ShadowKV
