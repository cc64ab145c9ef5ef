"""Dividing a budget among layers or heads in whole slots, with nothing lost and nothing added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def divide_layers(weights: Sequence[float], slots: int, floor: int, most: Sequence[int]) -> list[int]:
    """``slots`` a layer on the average, ``floor`` at least, the rest in proportion to ``weights``.

    A layer never gets more than it holds, ``most``; what is left over goes to the others, the widest weight first.
    Plain numbers: arrays as short as a model has layers take several times as long, in an act that has little to do.
    """
    given = [min(held, floor) for held in most]
    left = min(slots * len(most), sum(most)) - sum(given)
    while left > 0:
        room = [i for i, held in enumerate(most) if given[i] < held]
        parts = {i: max(weights[i], 1e-9) for i in room}
        whole = math.fsum(parts.values())
        more = {i: math.floor(left * part / whole) for i, part in parts.items()}
        if not any(more.values()):  # fewer slots than layers: one each, the widest first
            more = dict.fromkeys(sorted(room, key=lambda i: -parts[i])[:left], 1)
        for i, num in more.items():
            left += given[i]
            given[i] = min(given[i] + num, most[i])
            left -= given[i]
    return given


def of_layers(given: Sequence[int], num_heads: int) -> Tensor:
    """int64 [L, H]: what each layer was given, for all its heads."""
    import torch

    return torch.tensor([one for one in given for _ in range(num_heads)]).view(-1, num_heads)
