"""RazorAttention: heads that echo or continue a repeated text keep all; others keep a window and one mean token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._heads import SplitHeads
from .base import Decision, Need

if TYPE_CHECKING:
    from ._inputs import Inputs


@dataclass(frozen=True)
class RazorAttention(SplitHeads):
    """Heads are ranked by their echo and induction scores on repeated random tokens (``pagoda calibrate razor_attention
    MODEL``, section 3.2). What the others drop lives on in one compensation token, the mean of its keys and values
    (equation 4).

    Deviation: the compensation token counts once in the softmax; the paper gives it the weight of all that it stands
    for, which needs a weight for each slot.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.15891"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.KEYS, Need.VALUES})
    extra: ClassVar[int] = 1
    tracks: ClassVar[tuple[str, ...]] = ("stands_for",)

    def act(self, inputs: Inputs) -> Decision | None:
        decision = super().act(inputs)
        assert decision is not None
        carrier = self.sinks  # the first slot after the sinks: a dropped token, or the compensation token already
        dropped = ~decision.keep & inputs.valid
        merges = dropped[..., carrier]
        if not bool(merges.any()):
            return decision
        held = inputs.tracks["stands_for"]
        weights = dropped * held.clamp(min=1.0)
        for layer in inputs.layers():
            mine = merges[layer.index]
            if not bool(mine.any()):
                continue
            share = weights[layer.index] / weights[layer.index].sum(-1, keepdim=True).clamp(min=1.0)
            mask = mine[:, None] & (inputs.lens.new_tensor(range(inputs.num_slots)) == carrier)
            k, v = ((share[..., None] * x).sum(1, keepdim=True).expand_as(x) for x in (layer.keys, layer.values))
            decision.writes[layer.index] = (mask, k, v)  # type: ignore[index]
        held[..., carrier] = held[..., carrier].where(~merges, weights.sum(-1))
        decision.keep[..., carrier] |= merges
        return decision


POLICY = RazorAttention
