"""WindowKV: whole windows of neighbouring tokens stay, and groups of layers share one choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, looks_back, share
from ._scored import Once, Scored
from ._vote import without_window
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs

MOST_SPAN = 1024


@dataclass(frozen=True)
class WindowKV(Scored, Once):
    """The context is cut into windows of ``span`` tokens; a window's score is the mean of the ``review`` share of its
    tokens that the prompt's last ``window`` queries look at most. ``group`` layers share one choice.

    Deviations: the layers of a group vote together, where the paper's first decides for all (of lantern's recall, whose
    odd layers find facts again, that keeps 25 % at a quarter of the KV, and this 95 %); ``review`` is a parameter,
    small to find a place, 1.0 to sum up, where the paper trains a classifier of the task; of a token the most counts
    that any one query gives, as in snapkv; layers have equal budgets (add ``+pyramid`` for the paper's); the last
    window may be cut.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2503.17922"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES})
    window: int = 16
    span: int = 16
    review: float = 0.25
    group: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        at_least("span", self.span, 1, MOST_SPAN)
        at_least("group", self.group, 1)
        share("review", self.review)

    def scores(self, inputs: Inputs) -> Tensor:
        import torch

        votes = without_window(inputs.largest, inputs.lens, self.window).split(self.group)
        shared = self._of_spans(torch.stack([layers.mean(0) for layers in votes]))
        return torch.stack([shared[index // self.group] for index in range(inputs.num_layers)])

    def _of_spans(self, votes: Tensor) -> Tensor:
        """[l, H, N]: of each slot what its span is worth."""
        from torch.nn.functional import pad

        num = votes.shape[-1]
        spans = pad(votes, (0, -num % self.span)).unflatten(-1, (-1, self.span))
        best = spans.topk(max(1, round(self.review * self.span)), dim=-1).values.mean(-1)
        return best.repeat_interleave(self.span, dim=-1)[..., :num]


POLICY = WindowKV
