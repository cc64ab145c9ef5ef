"""Elastic Cache: what attention passes over is not dropped but averaged into the nearest slot that stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, share
from ._merge import merged
from ._scored import Rolling, keep_best, protect
from .base import Decision, Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class ElasticCache(Rolling):
    """Anchors are the slots with the most attention so far; when the prompt is complete every other slot is averaged
    into the nearest anchor (bucket merging, section 3.2). In the answer the first ``sinks`` and the newest stay, and
    the slot at a fixed distance behind (``recent_share`` of the budget) makes room (section 3.3).

    Deviation: a bucket counts once in the softmax, as in the paper's average.

    Finds no fact again (recall is that of keeping nothing, 25 %): anchors are h2o's heavy hitters, and a mean of a
    dozen neighbours' keys and values is none of them. The paper judges answers about pictures.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.18121"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBS, Need.KEYS, Need.VALUES})
    recent_share: float = 0.25
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        share("recent_share", self.recent_share)
        at_least("sinks", self.sinks, 0)

    def act(self, inputs: Inputs) -> Decision | None:
        assert inputs.mass is not None
        slots = self.slots_after(inputs.prompt_len)
        recent = max(1, round(self.recent_share * slots))
        if "compressed" in inputs.memory:
            return Decision(self._without_middle(inputs, slots, recent))
        inputs.memory["compressed"] = True
        scores = protect(inputs.mass, inputs, self.sinks, recent, slots)
        decision = Decision(keep_best(scores, inputs.lens.new_full(inputs.lens.shape, slots)))
        for layer in inputs.layers():
            keep = decision.keep[layer.index]
            sets = _nearest(keep)
            pivots = keep.new_zeros(len(keep), slots).long()
            counts = keep.long().cumsum(-1) - 1
            pivots = pivots.scatter(-1, counts.masked_fill(~keep, 0), _slots(keep).masked_fill(~keep, 0))
            pivots[:, 0] = keep.long().argmax(-1)
            decision.writes.append(merged(layer, sets, pivots, keep, lambda keys, *_: keys.new_ones(keys.shape[:2])))
        return decision

    def _without_middle(self, inputs: Inputs, slots: int, recent: int) -> Tensor:
        """Slots just before the newest ones go, as many as are too many."""
        at = inputs.lens.new_tensor(range(inputs.num_slots))
        lens = inputs.lens[..., None]
        end = (lens - recent).clamp(min=0)
        begin = (end - (lens - slots).clamp(min=0)).clamp(min=0)
        return ~((at >= begin) & (at < end)) & inputs.valid


def _slots(keep: Tensor) -> Tensor:
    return keep.long().new_tensor(range(keep.shape[-1])).expand(keep.shape)


def _nearest(keep: Tensor) -> Tensor:
    """int64 [H, N]: rank among the kept slots of the one nearest in order; of equals the earlier."""
    at = _slots(keep)
    far = 4 * keep.shape[-1]
    before = at.masked_fill(~keep, -far).cummax(-1).values
    after = at.masked_fill(~keep, far).flip(-1).cummin(-1).values.flip(-1)
    rank = keep.long().cumsum(-1) - 1  # of the kept slot at or before
    return (rank + (after - at < at - before).long()).clamp(min=0)


POLICY = ElasticCache
