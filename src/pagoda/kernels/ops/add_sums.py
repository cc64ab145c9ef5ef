"""What slots received in a step is added to what each sequence remembers: all sequences, layers and heads at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..case import Case, Make
from ..dispatch import Needs, Op


class Target(NamedTuple):
    """Where sums go: float32 ``[L, H, C]``, contiguous; its address and C are asked once, not at every step."""

    tensor: Tensor
    address: int
    width: int

    @classmethod
    def of(cls, tensor: Tensor) -> Target:
        assert tensor.is_contiguous()
        return cls(tensor, tensor.data_ptr(), tensor.shape[2])


class Targets(Sequence[Tensor]):
    """Those of several sequences."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self.addresses = np.array([target.address for target in targets], np.int64)
        self.widths = np.array([target.width for target in targets], np.int64)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self._targets[index].tensor

    def __len__(self) -> int:
        return len(self._targets)


def add_sums(sums: Tensor, targets: Sequence[Tensor]) -> None:
    """``targets[s]`` float32 ``[L, H, C]``, contiguous, gets ``sums`` float32 ``[L, S, H, N]`` of sequence s added, as
    far as both are wide: what is beyond a target's columns must be 0. See `Targets`.
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
