"""ShadowKV: the mean key of a chunk stands for it, and chunks that no mean stands for are always read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._pages import Look, PageSelection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ShadowKV(PageSelection):
    """Score: softmax of query times landmark (the mean of a page's keys), the highest of the group's heads (section
    4.2, algorithm 2). The ``outliers`` share of the pages to read goes to those whose keys are least like their mean.

    Deviations: what is here is the choice of chunks. Keys stay whole in their pages, where the paper keeps low-rank
    ones and rebuilds the chosen; values move to another tier with their keys (``shadowkv+offload``).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.21465"
    remote: ClassVar[bool] = True
    outliers: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        share("outliers", self.outliers)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        import torch
        from torch.nn.functional import cosine_similarity

        mean = keys.mean(2)
        alike = cosine_similarity(keys, mean[:, :, None], dim=-1).amin(-1)
        return torch.cat([mean, alike[..., None]], -1)  # [H, n, D + 1]

    def score(self, look: Look) -> Tensor:
        landmarks, alike = look.sketches[..., :-1], look.sketches[..., -1]
        logits = look.queries @ landmarks.transpose(1, 2) * look.scale
        votes = logits.masked_fill(~look.valid[:, None], -1e30).softmax(-1).amax(1)
        count = int(self.outliers * self.num_pages(look.valid.shape[1]))
        if count:
            odd = alike.masked_fill(~look.valid, 2.0).topk(count, dim=1, largest=False).indices
            votes = votes.scatter_add(1, odd, votes.new_full(odd.shape, 2.0))
        return votes


POLICY = ShadowKV
