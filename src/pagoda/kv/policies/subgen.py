"""SubGen: keys stand for clusters of keys, and tokens with large values are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._scored import ScoredAndNewest
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class SubGen(ScoredAndNewest):
    """Of the slots that are not among the newest ``recent_share``, half are representatives of key clusters (the
    farthest-point rule that the paper's online clustering approximates), half are drawn in proportion to the squared
    norm of their values (algorithm 1).

    Deviations: clusters are found anew at each act among what is left; slots count once, where the paper weighs the
    softmax's denominator by clusters and its numerator by the draw. One weight for both loses more (lantern, KL 0.014
    with none): a cluster's size for its representative 0.42, shared by all of the cluster that stays 0.17, for the mean
    of its keys and values 0.44. The draw depends on the seed and the tokens seen.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.06082"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.KEYS, Need.VALUES})

    def scores(self, inputs: Inputs) -> Tensor:
        import torch

        slots = self.slots_after(inputs.prompt_len)
        centers = max(1, (slots - self.recent(slots)) // 2)
        generator = torch.Generator().manual_seed((inputs.seed * 1_000_003 + inputs.num_seen) % 2**63)
        scores = []
        for layer in inputs.layers():
            order = farthest_first(layer.keys, layer.valid, centers)
            weight = layer.values.square().sum(-1).clamp(min=1e-12).log()
            noise = torch.rand(weight.shape, generator=generator).to(weight.device)
            drawn = weight - (-noise.clamp(1e-9, 1 - 1e-9).log()).log()  # Gumbel: the best are a weighted draw
            scores.append(torch.where(order < centers, 1e9 - order, drawn))
        return torch.stack(scores)


def farthest_first(keys: Tensor, valid: Tensor, num: int) -> Tensor:
    """float32 [H, N]: 0 for the first representative, then 1, 2, … for the key farthest from all so far; ``num`` for
    all other keys.
    """
    order = keys.new_full(valid.shape, float(num))
    away = keys.new_full(valid.shape, float("inf")).masked_fill(~valid, -1.0)
    heads = valid.new_tensor(range(len(valid))).long()
    for rank in range(min(num, valid.shape[-1])):
        pick = away.argmax(-1)
        order[heads, pick] = order[heads, pick].clamp(max=rank)
        distance = (keys - keys[heads, pick][:, None]).square().sum(-1)
        away = away.minimum(distance).masked_fill(~valid, -1.0)
    return order


POLICY = SubGen
