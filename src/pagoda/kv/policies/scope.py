"""SCOPE: the prompt is compressed once and left alone; heavy hitters of the answer slide in a pool of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, share, token_budget
from ._scored import Rolling, Scored, keep_best
from ._vote import pool_mean
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Scope(Scored, Rolling):
    """``prompt_share`` of the budget holds the prompt, chosen as SnapKV does when it is complete and never touched
    again; the rest holds the newest tokens of the answer and those that its last ``window`` queries dwelt on.

    The sliding, discontinuous form (section 3.2: the pool is revised every so many tokens, here ``every``). Deviation:
    the pool of the answer is reserved from the start, so that the budget is a ceiling; the paper's adaptive form lets
    it grow. What an act leaves of a small budget must hold more than the prompt's part: at a quarter of 400 tokens
    ``every=32`` with 0.75 of the budget for the prompt leaves nothing of the answer (perplexity 99; 81 as it is here).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.13649"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED, Need.POSITIONS})
    every: int = 16
    window: int = 16
    kernel: int = 13
    prompt_share: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("window", self.window, 1)
        share("prompt_share", self.prompt_share)

    def scores(self, inputs: Inputs) -> Tensor:
        received = inputs.received
        scores = pool_mean(received.flatten(0, 1), self.kernel).view(received.shape)
        assert inputs.positions is not None
        of_prompt = (inputs.positions < inputs.prompt_len) & inputs.valid
        part = max(1, round(self.prompt_share * token_budget(self.budget, inputs.prompt_len)))
        best = keep_best(scores.masked_fill(~of_prompt, -math.inf), inputs.lens.new_full(inputs.lens.shape, part))
        settled = (of_prompt.sum(-1) <= part)[..., None] & of_prompt
        return scores.masked_fill(of_prompt, -math.inf).masked_fill(best | settled, math.inf)

    def recent(self, slots: int) -> int:
        return max(1, min(self.window, slots // 4))


POLICY = Scope
