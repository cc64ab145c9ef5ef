"""Dividing a budget among layers or heads in whole slots, with nothing lost and nothing added."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def divide_layers(weights: Tensor, slots: int, floor: int, lens: Tensor) -> Tensor:
    """int64 [L, H]: ``slots`` a layer on the average, ``floor`` at least, the rest in proportion to ``weights`` [L].

    A layer never gets more than it holds; what is left over goes to the others, the widest weight first.
    """
    layers = len(weights)
    most = lens.amax(1)
    total = min(slots * layers, int(most.sum()))
    given = most.clamp(max=floor)
    spread = weights.double().clamp(min=1e-9)
    while (left := total - int(given.sum())) > 0:
        open_ = given < most
        part = spread.masked_fill(~open_, 0.0)
        more = (left * part / part.sum()).floor().long()
        if not int(more.sum()):  # fewer slots than layers: one each, the widest first
            order = part.argsort(descending=True)[: min(left, int(open_.sum()))]
            more = more.scatter(0, order, 1)
        given = (given + more).minimum(most)
    return given[:, None].expand(lens.shape).contiguous()
