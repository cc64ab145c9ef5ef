"""LycheeDecode: a few retrieval heads look at everything and choose; the others read what those below chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._pages import PageSelection
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule
    from ._pages import Counts
    from .base import Heads


@dataclass(frozen=True)
class LycheeDecode(PageSelection):
    """A retrieval head attends to all pages and hands the best on to the head of the same number in the next layer; a
    sparse head reads those, and hands them on. Roles come from gates that ``pagoda calibrate
    lychee_decode MODEL`` trains: all heads of the first layer, and the ``retrieval`` share of the others.

    ``pages`` is what sparse heads read. Retrieval heads read all, so that a step reads more: with ``pages=0.25`` 63 %
    of lantern's, whose first layer of four counts for much.

    Deviations: pages are handed on, not single tokens, each worth the attention that its tokens get; heads are
    kv-heads, since a group shares what it reads.

    Of lantern's recall (79 % of 324 cases) neither ``retrieval=0.5`` (79 %) nor pages worth their best token (80 %)
    save more; ``retrieval=1.0``, which leaves nothing out, saves all. It has four layers of two kv-heads, the paper's
    models 32 layers of eight.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2602.04541"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    whole: ClassVar[str] = "pages that a head chose are read by heads above it, which must hold the same tokens in them"
    retrieval: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        share("retrieval", self.retrieval)

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        return {"ranks": (heads.num_kv_heads,)}

    def counts(self, full: Counts, learned: Mapping[str, Tensor]) -> Counts:
        import numpy as np

        return np.where(self.looks(learned).numpy(), full, super().counts(full, learned))

    def looks(self, learned: Mapping[str, Tensor]) -> Tensor:
        """``ranks`` [L, H]: share of the heads above the first layer whose gate is higher; below 0 in the first."""
        return learned["ranks"] < self.retrieval

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("keys", weigh="softmax", sum_heads=True)


POLICY = LycheeDecode
