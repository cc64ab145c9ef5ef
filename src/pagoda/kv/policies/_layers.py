"""Which layers of a model a policy may take KV from: attention that measures distance in slots would count wrongly
afterwards. ALiBi does so everywhere; a sliding window does in its own layer, where contexts are longer than it is.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING

from ...core.errors import RequestError
from .base import Need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ...core.types import KVFormat
    from ._stack import PolicyStack

BESIDE_WINDOW = 128
"""Slots that a windowed layer holds beside its window and a step's tokens, at most: what lies before a multiple of 64,
and the rest of a page (one page more, where those have 128 slots)."""
EXACT_WAYS = "accepted: exact, and codecs of single slots (int8, fp8, int4)"


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
        import numpy as np

        found = np.ones(self.num_layers, np.bool_)
        found[list(self.index)] = False
        return found

    def mean(self, lossy: float, whole: float) -> float:
        """Of numbers of a layer's slots: that of all layers."""
        share = len(self.index) / self.num_layers
        return share * lossy + (1 - share) * whole


@dataclass(frozen=True)
class Reach:
    """What layers hold whose windows end: ``windows`` of all layers, 0 where none ends."""

    windows: tuple[int, ...]

    def mean(self, others: float, num_seen: int, step: int) -> float:
        """Slots of a layer on the average, at most, once ``num_seen`` tokens are there and were computed in steps of up
        to ``step``: ``others`` in layers without a window.
        """
        held = (min(num_seen, window + step + BESIDE_WINDOW) if window else others for window in self.windows)
        return sum(held) / len(self.windows)


def blocks_of(num_tokens: int, fmt: KVFormat, reach: Reach | None, step: int) -> int:
    """Blocks that an exact sequence of so many tokens, computed ``step`` at a time, takes at most."""
    if reach is None:
        return fmt.blocks_for(num_tokens)
    return fmt.blocks_for(ceil(reach.mean(num_tokens, num_tokens, step)))


def tokens_in(num_blocks: int, fmt: KVFormat, longest: int, reach: Reach | None, step: int) -> int:
    """Tokens of the longest exact sequence that so many blocks hold, up to ``longest``."""
    if reach is None:
        return min(longest, num_blocks * fmt.page_size)
    return bisect_right(range(1, longest + 1), num_blocks, key=lambda n: blocks_of(n, fmt, reach, step))


@dataclass(frozen=True)
class Distances:
    """How a model's layers measure distance in slots: ``windows`` of each (0: none), and whether ``alibi`` does.
    ``by_layer``: it is known of each layer, so that pages which no window reaches are given back (`kv.windows`).
    """

    windows: tuple[int, ...] = ()
    alibi: bool = False
    by_layer: bool = True

    def reach(self, longest: int) -> Reach | None:
        """What windows leave of contexts of ``longest`` tokens at most; None: everything."""
        ending = tuple(window if 0 < window < longest else 0 for window in self.windows)
        return Reach(ending) if self.by_layer and any(ending) else None

    def lossy(self, longest: int) -> LossyLayers | None:
        """Layers whose windows end nowhere within ``longest`` tokens; None: all do not."""
        index = tuple(layer for layer, window in enumerate(self.windows) if not 0 < window < longest)
        return None if len(index) == len(self.windows) else LossyLayers(index, len(self.windows))

    def why_not(self, longest: int) -> str:
        """Why no layer can lose slots in contexts of ``longest`` tokens at most, and what can be done; "" where some
        can.
        """
        if self.alibi:
            return f"ALiBi measures distance in slots, and dropped slots would shift it; {EXACT_WAYS}"
        layers = self.lossy(longest)
        if layers is None or layers.index:
            return ""
        widest = max(self.windows)
        return (
            f"its attention windows count slots ({widest}), and dropped slots would shift them; {EXACT_WAYS}, or any "
            f"policy once max_model_len is {widest} or less, where no window ends (it is {longest})"
        )

    def fit(self, policy: PolicyStack, longest: int) -> PolicyStack:
        """The policy with the layers that it may take from, and with what windows leave of the others. Raises
        RequestError, with what can be done, where there are none, or the policy needs all.
        """
        reach = None if policy.windowed is not None or policy.offload else self.reach(longest)
        if reach is not None:
            policy = replace(policy, reach=reach)
        if policy.keeps_all:
            return policy
        spelled, reason, layers = "+".join(policy.names), self.why_not(longest), self.lossy(longest)
        if reason:
            raise RequestError(f"kv={spelled!r} cannot run on this model: {reason}")
        if layers is not None and (why := _why_not_some(policy)):
            raise RequestError(
                f"kv={spelled!r} cannot run on this model, of whose layers {len(layers.index)} of {layers.num_layers} "
                f"may lose slots and the others have windows that count them: {why}; {EXACT_WAYS}"
            )
        return replace(policy, lossy=layers)


def _why_not_some(policy: PolicyStack) -> str:
    """Why a policy needs all layers; "" where it does not."""
    for one in (policy.eviction, policy.selection):
        if one is not None and Need.CALIBRATION in one.needs:
            name = policy.names[0] if one is policy.eviction else policy.chooses_by
            return f"{name} is calibrated to all layers together"
    if policy.eviction is not None and policy.windowed is not None:
        return f"{policy.windowed.method} encodes pages that hold the same tokens in all layers"
    return ""
