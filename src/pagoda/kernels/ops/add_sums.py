"""What slots received in a step is added to what each sequence remembers: all sequences, layers and heads at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op


def add_sums(sums: Tensor, targets: Sequence[Tensor]) -> None:
    """``targets[s]`` float32 ``[L, H, C]``, contiguous, gets ``sums`` float32 ``[L, S, H, N]`` of sequence s added, as
    far as both are wide: what is beyond a target's columns must be 0.
    """
    key = (sums.dtype, sums.device.type)
    run = _OP.chosen.get(key) or _OP.resolve(key, Needs(sums.device.type, (sums.dtype,)))
    run(sums, targets)


def reference(sums: Tensor, targets: Sequence[Tensor]) -> None:
    for s, target in enumerate(targets):
        both = min(sums.shape[-1], target.shape[-1])
        target[..., :both] += sums[:, s, :, :both]


_OP = Op("add_sums", reference)
TOLERANCE = {torch.float32: (0.0, 0.0)}


def _case(make: Make, sums: tuple[int, int, int, int], width: int) -> dict[str, object]:
    layers, seqs, heads, _ = sums
    store = make.normal(seqs, layers, heads, width)
    return {"sums": make.normal(*sums), "targets": store}


CASES = [
    Case("wider", lambda make: _case(make, (3, 4, 2, 17), 24), ("targets",)),
    Case("narrower", lambda make: _case(make, (2, 1, 3, 40), 21), ("targets",)),
    Case("no sequences", lambda make: _case(make, (2, 0, 3, 8), 8), ("targets",)),
]
