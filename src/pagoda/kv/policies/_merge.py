"""What merging methods share: sets of slots that become one, at the slot of the set that stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .base import Written

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import LayerInputs


def gather_sets(scores: Tensor, sets: Tensor, num_sets: int) -> Tensor:
    """int64 [L, H, num_sets]: the slot with the highest score of each set (of equals the newest).

    scores float32 [L, H, N]; sets int64 [L, H, N], the set of each slot. A set without slots names slot 0.
    """
    best = scores.new_full((*scores.shape[:-1], num_sets), -float("inf")).scatter_reduce(-1, sets, scores, "amax")
    slots = sets.new_tensor(range(sets.shape[-1])).expand(sets.shape)
    wins = scores >= best.gather(-1, sets)
    return sets.new_zeros(best.shape).scatter_reduce(-1, sets, slots * wins, "amax")


def merged(
    layer: LayerInputs,
    sets: Tensor,
    pivots: Tensor,
    keep: Tensor,
    weigh: Callable[[Tensor, Tensor, Tensor, int], Tensor],
) -> Written:
    """What one layer writes: pivots that gather others become their means.

    sets int64 [H, N] of each slot, pivots int64 [H, M] the slot of each set, keep bool [H, N];
    ``weigh(keys, keys of their pivots, sets, M)`` gives each slot's weight [H, N].
    """
    keys, values, num = layer.keys, layer.values, pivots.shape[-1]
    at = pivots.gather(-1, sets)  # [H, N] the pivot of each slot
    weights = weigh(keys, _take(keys, at), sets, num) * layer.valid
    total = weights.new_zeros(len(keys), num).scatter_add(-1, sets, weights)
    part = weights / total.gather(-1, sets).clamp(min=1e-30)
    members = weights.new_zeros(len(keys), num).scatter_add(-1, sets, layer.valid.float())
    heads, slots = (keep & (members.gather(-1, sets) > 1)).nonzero(as_tuple=True)
    k, v = (_spread(part[..., None] * x, sets, num)[heads, slots] for x in (keys, values))
    return Written(heads.new_full(heads.shape, layer.index), heads, slots, k, v)


def _take(x: Tensor, at: Tensor) -> Tensor:
    return x.gather(1, at[..., None].expand(*at.shape, x.shape[-1]))


def _spread(x: Tensor, sets: Tensor, num: int) -> Tensor:
    """Sums over sets, given back to every slot of the set: [H, N, D]."""
    index = sets[..., None].expand(x.shape)
    return x.new_zeros(len(x), num, x.shape[-1]).scatter_add(1, index, x).gather(1, index)
