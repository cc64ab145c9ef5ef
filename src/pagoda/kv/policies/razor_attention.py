"""RazorAttention: heads that echo or continue a repeated text keep all; others keep a window and one mean token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._heads import SplitHeads
from .base import WEIGHTS, Blend, Choice, Held, Need, Ranking, Written

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class RazorAttention(SplitHeads):
    """Heads are ranked by their echo and induction scores on repeated random tokens (``pagoda calibrate razor_attention
    MODEL``, section 3.2). What the others drop lives on in one compensation token, the mean of its keys and values
    (equation 4), which counts in the softmax as often as there are tokens that it stands for (equation 5).

    Deviations: streaming heads keep a window of ``local`` tokens, where the paper's grows with the text once it is long
    (a fixed share of it, at least a threshold, algorithm 1); ``retrieval`` is a quarter of the heads, where the paper
    takes 15 %; it is kv-heads that are ranked, since a group shares its cache.

    Against one that counts once, KL is 0.011 for 0.013 on lantern, the same on stories260K, and 0.114 for 0.091 on
    bitnet-stories-3M. Beside a selection of pages it counts once.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.15891"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.KEYS, Need.VALUES})
    extra: ClassVar[int] = 1

    @property
    def weighs(self) -> bool:
        return True

    def ranks(self, held: Held) -> Ranking | None:
        ranking = super().ranks(held)
        if ranking is not None:
            pairs: Tensor = held.memory["streams"][2]  # type: ignore[index]
            ranking.blend = self._blend(pairs, held.fewest, held.memory)
        return ranking

    def act(self, inputs: Inputs) -> Choice | None:
        import torch

        choice = super().act(inputs)
        assert choice is not None
        layers, heads, pairs, at = self._streams(inputs)
        blend = self._blend(pairs, inputs.fewest_slots, inputs.memory)
        if blend is None:
            return choice
        total = blend.weight + blend.count - 1
        weights = torch.full((len(at), blend.count), 1.0 / total, device=at.device)
        weights[:, 0] = blend.weight / total
        k, v = inputs.weigh(pairs, at, weights)
        choice.writes.append(Written(layers, heads, at, k, v))
        return choice

    def _blend(self, pairs: Tensor, fewest: int, memory: dict[str, object]) -> Blend | None:
        """What goes on in the compensation token of each streaming head, which holds ``fewest`` slots."""
        carrier = self.sinks  # the first slot after the sinks: a token that goes, or the compensation token already
        count = fewest - carrier - self.near  # of each streaming head that become one, side by side
        if count < 2:
            return None
        stands_for = memory.get("stands_for", 1)  # tokens, in the carrier of each; every other slot is one
        assert isinstance(stands_for, int)
        memory["stands_for"] = stands_for + count - 1
        self._weigh(pairs, stands_for + count - 1, memory)
        return Blend(pairs, carrier, count, stands_for)

    def _weigh(self, pairs: Tensor, stands_for: int, memory: dict[str, object]) -> None:
        """Carriers stay where they are: what they count is remembered of the slots up to there, and moves with none."""
        import torch

        if WEIGHTS not in memory:
            heads: Tensor = memory["streaming"]  # type: ignore[assignment]
            memory[WEIGHTS] = torch.zeros(*heads.shape, self.sinks + 1, device=pairs.device)
        memory[WEIGHTS].flatten(0, 1)[pairs, self.sinks] = math.log(stands_for)  # type: ignore[attr-defined]

    def _streams(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """int64 [n] each: layers and heads of the streaming heads, their numbers through all layers, their carriers."""
        import torch

        if "streams" not in inputs.memory:
            layers, heads = self.streaming(inputs).nonzero(as_tuple=True)
            pairs = layers * inputs.num_kv_heads + heads
            inputs.memory["streams"] = torch.stack([layers, heads, pairs, pairs * 0 + self.sinks])
        return inputs.memory["streams"].unbind()  # type: ignore[attr-defined,no-any-return]


POLICY = RazorAttention
