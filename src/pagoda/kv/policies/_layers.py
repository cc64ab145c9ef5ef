"""Layers of a model that a policy may take slots from, where others count them: sliding windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class LossyLayers:
    """``index``, ascending: those of ``num_layers`` that lose slots. The others keep all of theirs and read them all.
    An eviction is shown these layers as if there were no others, and its budget is theirs.
    """

    index: tuple[int, ...]
    num_layers: int

    @cached_property
    def whole(self) -> npt.NDArray[np.bool_]:
        """bool [L]: the others."""
        found = np.ones(self.num_layers, np.bool_)
        found[list(self.index)] = False
        return found

    def mean(self, lossy: float, whole: float) -> float:
        """Of numbers of a layer's slots: that of all layers."""
        share = len(self.index) / self.num_layers
        return share * lossy + (1 - share) * whole
