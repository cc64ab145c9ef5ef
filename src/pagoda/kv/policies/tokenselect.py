"""TokenSelect: heads vote on tokens with their softmaxed scores, and alike queries read what was chosen before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._pages import Look, PageSelection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenSelect(PageSelection):
    """Score: softmax of the exact products, summed over the group's heads (soft voting, section 4.2). A query whose
    cosine to the one that last chose is above ``alike`` reuses its choice (selection cache, section 4.3).

    Deviation: votes are summed over pages, and pages are fetched, not single tokens.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2411.02886"
    alike: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        share("alike", self.alike)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return keys[..., :0, 0]

    def score(self, look: Look) -> Tensor:
        from torch.nn.functional import cosine_similarity, pad

        flat, before = look.queries.flatten(), look.memory.get("query")
        if before is not None and float(cosine_similarity(flat, before, dim=0)) > self.alike:
            known = look.memory["votes"]
            return pad(known, (0, look.valid.shape[1] - known.shape[1]))
        keys = look.read_keys()
        heads, pages, size, _ = keys.shape
        logits = look.queries @ keys.flatten(1, 2).transpose(1, 2) * look.scale
        hidden = ~look.valid.repeat_interleave(size, 1)[:, None]
        votes = logits.masked_fill(hidden, -1e30).softmax(-1).sum(1).view(heads, pages, size).sum(-1)
        look.memory["query"], look.memory["votes"] = flat, votes
        return votes


POLICY = TokenSelect
