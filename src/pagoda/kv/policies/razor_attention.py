"""RazorAttention: heads that echo or continue a repeated text keep all; others keep a window and one mean token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._heads import SplitHeads
from .base import Choice, Need, Written

if TYPE_CHECKING:
    from torch import Tensor

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

    def act(self, inputs: Inputs) -> Choice | None:
        import torch

        choice = super().act(inputs)
        assert choice is not None
        carrier = self.sinks  # the first slot after the sinks: a token that goes, or the compensation token already
        count = inputs.fewest_slots - carrier - self.near  # of each streaming head that become one, side by side
        if count < 2:
            return choice
        layers, heads, pairs, at = self._streams(inputs)
        stands_for = inputs.memory.get("stands_for", 1)  # tokens, in the carrier of each; every other slot is one
        assert isinstance(stands_for, int)
        inputs.memory["stands_for"] = total = stands_for + count - 1
        weights = torch.full((len(at), count), 1.0 / total, device=at.device)
        weights[:, 0] = stands_for / total
        k, v = inputs.weigh(pairs, at, weights)
        choice.writes.append(Written(layers, heads, at, k, v))
        return choice

    def _streams(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """int64 [n] each: layers and heads of the streaming heads, their numbers through all layers, their carriers."""
        import torch

        if "streams" not in inputs.memory:
            layers, heads = self.streaming(inputs).nonzero(as_tuple=True)
            pairs = layers * inputs.num_kv_heads + heads
            inputs.memory["streams"] = torch.stack([layers, heads, pairs, pairs * 0 + self.sinks])
        return inputs.memory["streams"].unbind()  # type: ignore[attr-defined,no-any-return]


POLICY = RazorAttention
