"""SparQ: the query's largest components alone tell well enough which keys it will like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._pages import Look, PageSelection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SparQ(PageSelection):
    """Approximate attention from the ``rank`` channels in which the group's queries are largest (section 4, step 1),
    summed over each page.

    Deviations: pages are fetched, not single tokens; what is not fetched is left out, where the paper adds the mean
    value in its place (step 3).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2312.04985"
    rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("rank", self.rank, 1)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return keys[..., :0, 0]

    def score(self, look: Look) -> Tensor:
        q = look.queries
        best = q.abs().sum(1).topk(min(self.rank, q.shape[-1]), dim=-1).indices  # [H, rank]
        keys = look.read_keys()
        heads, pages, size, _ = keys.shape
        part = keys.gather(-1, best[:, None, None].expand(heads, pages, size, -1))
        few = q.gather(-1, best[:, None].expand(-1, q.shape[1], -1))
        covered = few.abs().sum(-1, keepdim=True) / q.abs().sum(-1, keepdim=True).clamp(min=1e-9)
        logits = (few / covered.sqrt() * look.scale) @ part.flatten(1, 2).transpose(1, 2)
        hidden = ~look.valid.repeat_interleave(size, 1)[:, None]
        return logits.masked_fill(hidden, -1e30).softmax(-1).sum(1).view(heads, pages, size).sum(-1)


POLICY = SparQ
