"""Ltri-LLM: the text falls into spans that attend to themselves, and whole spans are recalled by vote of the heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, share
from ._pages import FLOAT32, PageSelection

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule

MOST_PAGES = 32
"""Of a span: finding them takes the square of it for each page."""


@dataclass(frozen=True)
class LtriLLM(PageSelection):
    """A span is a stretch of at most ``longest`` pages whose triangle of the attention map weighs most, noise taken off
    each of its cells; they are chosen greedily, and those that overlap a better one fall away (the paper's dynamic
    triangles). A span's index is its keys' mean; heads vote on spans with their softmaxed products (collaborative
    retrieval), and ``persist`` of the last step's votes still counts.

    Deviations: nothing here ever holds the attention map of a whole prompt, so keys stand in for the queries of their
    tokens, and cells are pages, not tokens; all heads of a layer vote and read the same spans, where the paper asks
    retrieval heads. Pages of the answer make spans by themselves as they are full.

    Longer spans have a blunter mean: of 324 cases of lantern's recall 77 % with ``longest=4``, 83 % with two pages,
    84 % with one.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.04757"
    marked: ClassVar[bool] = True
    keeps_first: ClassVar[bool] = True
    whole: ClassVar[str] = "a span is a stretch of the text, which an eviction tears apart differently in each head"
    longest: int = 2
    persist: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("longest", self.longest, 1, MOST_PAGES)
        share("persist", self.persist)

    @property
    def persists(self) -> float:
        return self.persist

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return dim * FLOAT32

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("rows", weigh="softmax", sum_heads=True)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """The mean key of each page's span: [H, n, 1, D]. Pages of a span are worth the same; the earlier go first."""
        import torch

        means = keys.mean(2)
        starts = torch.tensor(spans(affinity(means), self.longest), device=keys.device)
        sums = torch.zeros_like(means).index_add_(1, starts, means)
        return (sums / torch.bincount(starts, minlength=len(starts)).clamp(min=1)[:, None])[:, starts, None]


def affinity(means: Tensor) -> Tensor:
    """float32 [n, n]: cosines of pages' mean keys [H, n, D], without what all pages have in common, over the heads."""
    from torch.nn.functional import normalize

    apart = normalize(means - means.mean(1, keepdim=True), dim=-1)
    alike: Tensor = (apart @ apart.transpose(1, 2)).mean(0)
    return alike


def spans(alike: Tensor, longest: int) -> list[int]:
    """The first page of every page's span. A span of pages s … e weighs the sum of ``alike`` less its mean over all
    near pairs, over the pairs within it; a page that is in no span that weighs anything is one by itself.
    """
    num = len(alike)
    near = [(j, i) for i in range(num) for j in range(max(0, i - longest + 1), i)]
    cells = alike.tolist()
    noise = sum(cells[i][j] for j, i in near) / max(1, len(near))
    found: list[tuple[float, int, int]] = []
    for start in range(num):
        weight = 0.0
        for end in range(start + 1, min(num, start + longest)):
            weight += sum(cells[end][j] - noise for j in range(start, end))
            if weight > 0:
                found.append((weight, start, end))
    first = list(range(num))
    taken = [False] * num
    for _, start, end in sorted(found, key=lambda one: (-one[0], one[1])):
        if not any(taken[start : end + 1]):
            taken[start : end + 1] = [True] * (end + 1 - start)
            first[start : end + 1] = [start] * (end + 1 - start)
    return first


POLICY = LtriLLM
