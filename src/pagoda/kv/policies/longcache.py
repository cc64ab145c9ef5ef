"""LongCache: pages chosen by content alone, and read as if they lay side by side just before the newest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._pages import BFLOAT16, PageSelection
from ._rotary import angles, turn
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class LongCache(PageSelection):
    """Rotary positions are taken out of query and keys, and the pages with the largest products stay in sight, beside
    the first and the newest (full-context selection); what is read gets consecutive positions, so that no distance is
    longer than what is read, however long the context (position reassignment). Frequencies come from ``pagoda calibrate
    longcache MODEL``.

    Keys without positions are held a second time, in bfloat16, to be looked at.

    Deviations: a page stands for the paper's segment around a chosen token, a head chooses for its group alone, and in
    the prompt everything is read with true positions: only decode steps choose.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.15176"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    whole: ClassVar[str] = "it takes a key's position from its place, which an eviction changes"
    moves: ClassVar[bool] = True
    keeps_first: ClassVar[bool] = True

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return page_size * dim * BFLOAT16

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("pairs", "turn")

    def turn(self, position: int, learned: Mapping[str, Tensor]) -> Tensor:
        return angles(-position, _frequencies(learned))

    def turns(self, num: int, page_size: int, learned: Mapping[str, Tensor]) -> Tensor:
        import torch

        return angles(page_size * torch.arange(num)[:, None], _frequencies(learned)[:, None])

    def sketch_as(self, keys: Tensor, memory: dict[str, Tensor], first: int, learned: Mapping[str, Tensor]) -> Tensor:
        import torch

        from ...kernels.ops.page_scores import in_pairs

        heads, pages, size, width = keys.shape
        at = torch.arange(first * size, (first + pages) * size, device=keys.device)
        still = turn(keys.reshape(heads, -1, width), -at, _frequencies(learned))
        return in_pairs(still.view(keys.shape))

    def moved(self, keys: Tensor, gaps: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        heads, pages, size, width = keys.shape
        by = gaps.repeat_interleave(size, 1)
        return turn(keys.reshape(heads, -1, width), by, _frequencies(learned)).view(heads, pages, size, width)


def _frequencies(learned: Mapping[str, Tensor]) -> Tensor:
    """float32 [D / 2]; the file rounds to five digits, which 10,000 positions would turn into a wrong angle."""
    return learned["freq"] + 1e-5 * learned["fine"]


POLICY = LongCache
