"""LongCache: pages chosen by content alone, and read as if they lay side by side just before the newest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._pages import Look, PageSelection
from ._rotary import turn
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LongCache(PageSelection):
    """Rotary positions are taken out of query and keys, and the pages with the largest products stay in sight, beside
    the first and the newest (full-context selection); what is read gets consecutive positions, so that no distance is
    longer than what is read, however long the context (position reassignment). Frequencies come from ``pagoda calibrate
    longcache MODEL``.

    Deviations: a page stands for the paper's segment around a chosen token, a head chooses for its group alone, and in
    the prompt everything is read with true positions: only decode steps choose.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2407.15176"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    whole: ClassVar[str] = "it takes a key's position from its place, which an eviction changes"
    moves: ClassVar[bool] = True

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return keys[..., :0, 0]

    def score(self, look: Look) -> Tensor:
        import torch

        keys = look.read_keys()
        heads, pages, size, width = keys.shape
        at = torch.arange(pages * size, device=keys.device)
        freq = _frequencies(look.learned)
        still = turn(keys.reshape(heads, -1, width), -at, freq)
        queries = turn(look.queries, look.queries.new_tensor([-look.position]), freq)
        scores = (queries @ still.transpose(1, 2)).view(heads, -1, pages, size).amax((1, 3))
        scores[:, 0] = torch.inf
        return scores

    def moved(self, keys: Tensor, gaps: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        heads, pages, size, width = keys.shape
        by = gaps.repeat_interleave(size, 1)
        return turn(keys.reshape(heads, -1, width), by, _frequencies(learned)).view(heads, pages, size, width)


def _frequencies(learned: Mapping[str, Tensor]) -> Tensor:
    """float32 [D / 2]; the file rounds to five digits, which 10,000 positions would turn into a wrong angle."""
    return learned["freq"] + 1e-5 * learned["fine"]


POLICY = LongCache
