"""Who is told of a step's attention while it runs, or adds to its answers: what KV policies look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels.ops.add_sums import Target
from ..kernels.step import QueryRings


class Receiver(Protocol):
    """Where a sequence remembers what its slots receive: room for ``num_slots`` of every head, and for ``counts`` where
    they are asked for.
    """

    @property
    def counts_up(self) -> bool: ...

    def receives(self, num_slots: int, device: torch.device) -> Target: ...

    def counts(self, num_slots: int, device: torch.device) -> Target: ...


class Tap(Protocol):
    """Who wants to know the step's queries."""

    def __call__(self, layer: int, q: Tensor, options: Mapping[str, object]) -> None:
        """q ``[T, Hq, Dk]`` of one layer."""

    def rings(self) -> QueryRings | None:
        """Where queries of the step's sequences go while it runs: then it is not called. None: it must be, by every
        layer.
        """


class Noter(Protocol):
    """Notes pages of a prompt, which a `Chooser` will want to know, while their keys are in memory."""

    def first(self, layer: int, heads: slice) -> int:
        """The first page of these heads that is not noted."""

    def note(self, layer: int, heads: slice, first: int, keys: Tensor) -> None:
        """keys float32 ``[h, n, page_size, k_dim]``: of the full pages ``first`` … of these heads."""


@dataclass(frozen=True, slots=True)
class Received:
    """What slots received in one step: of the batch's sequences ``members``, whose heads hold ``num_slots`` at most.

    sums    float32 [L, S, H, N]  attention, over the step's queries and the heads of the group; 0 beyond a head
    counts  float32 [L, S, H, N]  how many of those gave the slot at least their mean; or None
    """

    members: list[int]
    num_slots: list[int]
    sums: Tensor
    counts: Tensor | None

    def of(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """One layer's sums and counts, to be written."""
        return self.sums[layer], None if self.counts is None else self.counts[layer]


@dataclass(frozen=True, slots=True)
class SlotWeights:
    """How often the slots of one sequence count in the softmax: logarithms, contiguous float32 [l, H, n] of the first n
    slots of the ``layers`` (None: of all), which must outlive the step. All others count once.
    """

    logs: Tensor
    layers: tuple[int, ...] | None = None

    def of(self, layer: int) -> Tensor | None:
        """[H, n]"""
        if self.layers is None:
            return self.logs[layer]
        return self.logs[self.layers.index(layer)] if layer in self.layers else None

    def addresses(self, num_layers: int) -> npt.NDArray[np.int64]:
        """[L] where ``of`` each layer lies, or 0."""
        found = np.zeros(num_layers, np.int64)
        each = self.logs.stride(0) * self.logs.element_size()
        at = slice(None) if self.layers is None else list(self.layers)
        found[at] = self.logs.data_ptr() + each * np.arange(len(self.logs))
        return found


Residual = Callable[[Tensor, int], "tuple[Tensor, Tensor] | None"]
"""(queries [Hq, Dk] of one token, layer) -> what evicted slots answer; see ``Eviction.residual``."""
