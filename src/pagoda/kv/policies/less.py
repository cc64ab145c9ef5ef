"""LESS: what is evicted lives on in a small sum of features, which answers queries beside the slots that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._scored import ScoredAndNewest
from .base import Decision, Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs
    from .base import Allocator, Heads

MOST = 30.0
"""Features are ``exp`` of at most this."""


@dataclass(frozen=True)
class LESS(ScoredAndNewest):
    """H2O's choice of slots; each one that goes adds its features times its value to a state of ``R`` rows a head, and
    its features to the state's sum. A query's features times the state stand for the attention that the evicted would
    have got, in numerator and denominator (section 3.2). Kernels come from ``pagoda calibrate less MODEL``.

    Deviations: features are exponentials of one learned affine map each for queries and keys, where the paper has
    networks of two and three layers, so that products of features can be what they replace, exponentials of products;
    grouped query heads share the state of their kv-head.

    Recalls what h2o does, whose slots it keeps: the features restore the weight of what is gone (KL 0.073 beside h2o's
    0.078), not the digits of one fact.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.09398"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.PROBS, Need.KEYS, Need.VALUES, Need.CALIBRATION})
    leaves_residual: ClassVar[bool] = True

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        asking, held, dim = heads.num_q_heads, heads.num_kv_heads, heads.k_dim
        return {"q_map": (asking, dim, 0), "q_bias": (asking, 0), "k_map": (held, dim, 0), "k_bias": (held, 0)}

    def scores(self, inputs: Inputs) -> Tensor:
        assert inputs.mass is not None
        return inputs.mass

    def act(self, inputs: Inputs, allocator: Allocator | None = None) -> Decision | None:
        import torch

        decision = super().act(inputs, allocator)
        assert decision is not None
        gone = inputs.valid & ~decision.keep
        weights, biases = inputs.calibration["k_map"], inputs.calibration["k_bias"]
        states, sums = [], []
        for layer in inputs.layers():
            one = features(layer.keys, weights[layer.index], biases[layer.index]) * gone[layer.index, ..., None]
            states.append(one.transpose(1, 2) @ layer.values)
            sums.append(one.sum(1))
        for name, new in (("residual", torch.stack(states)), ("residual_sum", torch.stack(sums))):
            inputs.memory[name] = inputs.memory.get(name, 0) + new  # type: ignore[operator]
        return decision

    def residual(
        self, q: Tensor, layer: int, memory: Mapping[str, object], learned: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        if "residual" not in memory:
            return None
        state, total = memory["residual"][layer], memory["residual_sum"][layer]  # type: ignore[index]
        found = features(q.float()[:, None], learned["q_map"][layer], learned["q_bias"][layer])
        found = found.view(len(total), -1, total.shape[-1])  # [H, G, R]
        part = (found @ total[..., None])[..., 0].clamp(min=1e-30)
        mean = (found @ state) / part[..., None]
        return part.log().flatten(), mean.flatten(0, 1)


def features(x: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    """float32 ``[H, N, R]`` of keys or queries ``[H, N, D]``: weights ``[H, D, R]``, bias ``[H, R]``."""
    found: Tensor = (x @ weights.to(x.device) + bias.to(x.device)[:, None]).clamp(max=MOST).exp()
    return found


POLICY = LESS
