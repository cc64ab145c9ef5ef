"""Locret: small trained heads say of each token, once and for good, how much later ones will want it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._scored import ScoredAndNewest
from .base import Need

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from ._inputs import Inputs
    from .base import Heads


@dataclass(frozen=True)
class Locret(ScoredAndNewest):
    """A two-layer network for each layer, trained by ``pagoda calibrate locret MODEL``, looks at a new token's keys and
    values and gives each kv-head a causal importance score, which stays with the slot. The prompt is
    compressed while it is computed, ``every`` tokens a time, so that the budget holds in prefill too;
    ``recent_share`` of it, the stabilizers, are the newest tokens.

    Deviation: the network sees values and squared keys as they lie in the cache, where the paper has keys and queries
    before rotation too.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.01805"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.KEYS, Need.VALUES, Need.CALIBRATION})
    tracks: ClassVar[tuple[str, ...]] = ("importance",)
    in_prompt: ClassVar[bool] = True
    recent_share: float = 0.25

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        count = heads.num_kv_heads
        return {"w1": (count * (heads.k_dim + heads.v_dim), 0), "b1": (0,), "w2": (0, count), "b2": (count,)}

    def scores(self, inputs: Inputs) -> Tensor:
        def judged(layers: range, k: Tensor, v: Tensor) -> Tensor:
            import torch

            found = []
            for index, layer in enumerate(layers):
                weights = {name: t[layer].to(k.device) for name, t in inputs.calibration.items()}
                found.append(judge(features(k[index].transpose(0, 1), v[index].transpose(0, 1)), weights).T)
            return torch.stack(found)

        known = inputs.tracks["importance"]
        inputs.judge_new(known, judged)
        return known


def features(k: Tensor, v: Tensor) -> Tensor:
    """What a network sees of tokens k [n, H, Dk], v [n, H, Dv]: float32 [n, H * (Dk + Dv)]. A rotation keeps the sum of
    the squares of the two channels that it turns, so squared keys tell the same at any position.
    """
    import torch

    return torch.cat([k * k, v], -1).flatten(1)


def judge(shown: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """float32 [n, H] from ``features``. w1 [in, hidden], b1, w2 [hidden, H], b2."""
    from torch.nn.functional import silu

    return silu(shown @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]


POLICY = Locret
