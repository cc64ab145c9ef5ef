"""RazorAttention: heads that echo or continue a repeated text keep all; others keep a window and one mean token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._heads import SplitHeads
from .base import Decision, Need, Written

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
        count = int(dropped.sum(-1).max())  # of each head they lie side by side, the carrier first
        weights = dropped[..., carrier : carrier + count] * held[..., carrier : carrier + count].clamp(min=1.0)
        total = weights.sum(-1)
        share = (weights / total.clamp(min=1.0)[..., None])[..., None, :]
        for layers, k, v in inputs.parts(inputs.lens.new_full(inputs.lens.shape, carrier), count):
            here, heads = merges[layers.start : layers.stop].nonzero(as_tuple=True)
            mine = share[layers.start : layers.stop][here, heads]  # [n, 1, count]
            means = ((mine @ x[here, heads])[:, 0] for x in (k, v))
            decision.writes.append(Written(here + layers.start, heads, here.new_full(here.shape, carrier), *means))
        held[..., carrier] = held[..., carrier].where(~merges, total)
        decision.keep[..., carrier] |= merges
        return decision


POLICY = RazorAttention
