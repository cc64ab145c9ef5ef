"""LongCache: pages chosen by content alone, and read as if they lay side by side just before the newest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._pages import PageSelection, byte_marks
from ._rotary import angles, turn
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_marks import MarkAids
    from ...kernels.ops.page_scores import PageRule
    from .base import Heads


@dataclass(frozen=True)
class LongCache(PageSelection):
    """Rotary positions are taken out of query and keys, and the pages with the largest products stay in sight, beside
    the first and the newest (full-context selection); what is read gets consecutive positions, so that no distance is
    longer than what is read, however long the context (position reassignment). Frequencies come from ``pagoda calibrate
    longcache MODEL``.

    Keys without positions are held a second time, as bytes with a scale each, to be looked at.

    Deviations: a page stands for the paper's segment around a chosen token, a head chooses for its group alone, and in
    the prompt everything is read with true positions: only decode steps choose.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.15176"
    marked: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    whole: ClassVar[str] = "it takes a key's position from its place, which an eviction changes"
    moves: ClassVar[bool] = True
    keeps_first: ClassVar[bool] = True

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("freq", "fine"), (heads.k_dim // 2,))

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return byte_marks(page_size, dim)

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("bytes", "turn")

    def turn(self, position: int | Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        return angles(-position, _frequencies(learned))

    def turns(self, num: int, page_size: int, learned: Mapping[str, Tensor]) -> Tensor:
        import torch

        return angles(page_size * torch.arange(num)[:, None], _frequencies(learned)[:, None])

    def mark_aids(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> MarkAids:
        from ...kernels.ops.page_marks import MarkAids

        return MarkAids(freq=_frequencies(learned))

    @classmethod
    def complete(cls, learned: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**learned, "sum": _frequencies(learned)}

    def sketch_as(self, keys: Tensor, memory: dict[str, Tensor], first: int, learned: Mapping[str, Tensor]) -> Tensor:
        return _without_positions(keys, first, _frequencies(learned))

    def moved(self, keys: Tensor, gaps: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        heads, pages, size, width = keys.shape
        by = gaps.repeat_interleave(size, 1)
        return turn(keys.reshape(heads, -1, width), by, _frequencies(learned)).view(heads, pages, size, width)


def _without_positions(keys: Tensor, first: int, freq: Tensor) -> Tensor:
    """Marks [..., H, n, …] of keys [..., H, n, page_size, D] from page ``first`` on."""
    import torch

    from ...kernels.ops.page_scores import in_bytes

    pages, size, _ = keys.shape[-3:]
    at = torch.arange(first * size, (first + pages) * size, device=keys.device)
    still = turn(keys.flatten(-3, -2), -at, freq).view(keys.shape)
    return in_bytes(still.reshape(-1, *keys.shape[-3:])).unflatten(0, keys.shape[:-3])


def _frequencies(learned: Mapping[str, Tensor]) -> Tensor:
    """float32 [D / 2]; the file rounds to five digits, which 10,000 positions would turn into a wrong angle."""
    return learned["sum"] if "sum" in learned else learned["freq"] + 1e-5 * learned["fine"]


POLICY = LongCache
