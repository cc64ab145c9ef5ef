"""ShadowKV: the mean key of a chunk stands for it, and chunks that no mean stands for are always read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._pages import FLOAT32, PageSelection

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class ShadowKV(PageSelection):
    """Score: softmax of query times landmark (the mean of a page's keys), the highest of the group's heads (section
    4.2, algorithm 2). The ``outliers`` share of the pages to read goes to those whose keys are least like their mean.

    Deviations: what is here is the choice of chunks. Keys stay whole in their pages, where the paper keeps low-rank
    ones and rebuilds the chosen; values move to another tier with their keys (``shadowkv+offload``).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.21465"
    remote: ClassVar[bool] = True
    marked: ClassVar[bool] = True
    outliers: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        share("outliers", self.outliers)

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return (dim + 1) * FLOAT32

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("rows", weigh="softmax")

    def num_outliers(self, full: int) -> int:
        return int(self.outliers * self.num_pages(full))

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        import torch
        from torch.nn.functional import cosine_similarity

        mean = keys.mean(2)
        alike = cosine_similarity(keys, mean[:, :, None], dim=-1).amin(-1)
        return torch.cat([mean, alike[..., None]], -1)[:, :, None]  # [H, n, 1, D + 1]


POLICY = ShadowKV
