"""Dividing a budget among layers or heads in whole slots, with nothing lost and nothing added."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def divide_layers(weights: Tensor, slots: int, floor: int, lens: Tensor) -> Tensor:
    """int64 [L, H]: ``slots`` a layer on the average, ``floor`` at least, the rest in proportion to ``weights`` [L].

    A layer never gets more than it holds; what is left over goes to the others, the widest weight first.
    """
    import numpy as np

    most = lens.amax(1).cpu().numpy()  # a layer is a number: torch takes ten times as long
    total = min(slots * len(most), int(most.sum()))
    given = np.minimum(most, floor)
    spread = np.maximum(weights.double().cpu().numpy(), 1e-9)
    while (left := total - int(given.sum())) > 0:
        room = given < most
        part = np.where(room, spread, 0.0)
        more = np.floor(left * part / part.sum()).astype(np.int64)
        if not more.any():  # fewer slots than layers: one each, the widest first
            more[np.argsort(-part, kind="stable")[: min(left, int(room.sum()))]] = 1
        given = np.minimum(given + more, most)
    return lens.new_tensor(given)[:, None].expand(lens.shape).contiguous()
