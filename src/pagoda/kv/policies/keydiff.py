"""KeyDiff: keys that point where most keys point tell least, and go; so early that no prompt is ever whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._scored import ScoredAndNewest
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class KeyDiff(ScoredAndNewest):
    """Score: minus the cosine of a key to the anchor, the mean of all keys of length one that the head holds (algorithm
    1). Nothing is asked of queries, so the prompt is compressed while it is computed, ``every`` tokens a time, and what
    stays serves a question that comes later. ``recent_share`` of the budget is the newest tokens, the paper's sliding
    window.

    Deviation: the first ``sinks`` slots stay. In lantern their keys are like the others, and without them the text is
    another one (KL 1.2 beside 0.1; recall is the same).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2504.15364"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.KEYS})
    in_prompt: ClassVar[bool] = True
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("sinks", self.sinks, 0)

    def scores(self, inputs: Inputs) -> Tensor:
        import torch
        from torch.nn.functional import normalize

        found = []
        for layers, k, _ in inputs.parts(inputs.same(0), inputs.num_slots, values=False):
            beyond = ~inputs.valid[layers.start : layers.stop]
            keys = normalize(k.masked_fill(beyond[..., None], 0.0), dim=-1)
            anchor = normalize(keys.sum(2, keepdim=True), dim=-1)
            found.append(-(keys * anchor).sum(-1))
        return torch.cat(found)


POLICY = KeyDiff
