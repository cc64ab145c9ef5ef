"""SCOPE: the prompt is compressed once and left alone; heavy hitters of the answer slide in a pool of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import looks_back, odd, share, token_budget
from ._scored import Rolling, Scored, fitting, keep_best
from ._vote import pool_mean
from .base import Allocator, Choice, Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Scope(Scored, Rolling):
    """``prompt_share`` of the budget holds the prompt, chosen as SnapKV does; the rest holds the newest tokens of the
    answer and those that its last ``window`` queries dwelt on, from the second act on. Until then the answer needs no
    room, and the prompt has it.

    The sliding, discontinuous form (section 3.2: the pool is revised every so many tokens, here ``every``). Deviations:
    the pool of the answer is of one size, so that the budget is a ceiling, where the paper's adaptive form lets
    it grow; what of the prompt is beyond its part goes when the answer comes for its room. What an act leaves of a
    small budget must hold more than the prompt's part: at a quarter of 400 tokens ``every=32`` with 0.75 of the budget
    for the prompt leaves nothing of the answer (perplexity 99; 81 as it is here).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.13649"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RECEIVED})
    allots = True  # between prompt and answer
    every: int = 16
    window: int = 16
    kernel: int = 13
    prompt_share: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        share("prompt_share", self.prompt_share)
        odd("kernel", self.kernel)

    def act(self, inputs: Inputs, allocator: Allocator | None = None) -> Choice:
        slots, received = self.slots_after(inputs.prompt_len), inputs.received
        part = round(self.prompt_share * token_budget(self.budget, inputs.prompt_len))
        part = max(1, min(part, slots - self.recent(slots)))
        held = inputs.memory.get("prompt", min(inputs.prompt_len, inputs.num_slots))  # of the prompt, the first of all
        assert isinstance(held, int)
        all_prompt = held == inputs.num_slots
        inputs.memory["prompt"] = min(held, slots if all_prompt else part)
        sinks, recent = fitting(0 if all_prompt else min(held, part), self.recent(slots), slots)
        choice = Choice(
            inputs.lens, inputs.num_slots, inputs.same(slots), received, sinks, recent, pool=self.kernel
        )  # fmt: skip
        if not all_prompt and held > part:
            choice.scores = self._revised(received, held, part)
            choice.sinks, choice.pool = 0, 1
        return choice

    def _revised(self, received: Tensor, held: int, part: int) -> Tensor:
        """Of the first ``held`` slots the ``part`` best stay for sure, and the others go."""
        import torch

        scores = pool_mean(received.flatten(0, 1), self.kernel).view(received.shape)
        best = keep_best(scores[..., :held], scores.new_full(scores.shape[:2], part).long())
        scores[..., :held] = torch.where(best, math.inf, -math.inf)
        return scores

    def recent(self, slots: int) -> int:
        return max(1, min(self.window, slots // 4))


POLICY = Scope
