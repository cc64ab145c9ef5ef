"""SCOPE: the prompt is compressed once and left alone; heavy hitters of the answer slide in a pool of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import looks_back, odd, share, token_budget
from ._scored import Rolling, Scored, fitting, keep_best
from ._vote import pool_mean
from .base import Allocator, By, Choice, Held, Need, Ranking

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Scope(Scored, Rolling):
    """``prompt_share`` of the budget is the prompt's for good, chosen as SnapKV does; the rest is the answer's, its
    newest tokens and those that its last ``window`` queries dwelt on. The prompt has that room until the answer comes
    for it, token by token (the adaptive form of section 3.2).

    The pool is revised every so many tokens (discontinuous), here ``every``; of a small budget the first act leaves no
    more than a sixth free, since short answers are over before the second. Deviations: prompt and answer share one
    budget, so that it is a ceiling, where the paper adds the answer's to the prompt's. What an act leaves of a small
    budget must hold more than the prompt's part: ``every=32`` at a quarter of 400 tokens left nothing of the answer
    (perplexity 99; 81 with 16).
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

    def next_act(self, num_seen: int, prompt_len: int) -> int:
        budget = token_budget(self.budget, prompt_len)
        first, free = self._first(budget, prompt_len), self._free(budget)
        return first if num_seen < first else super().next_act(num_seen - free, prompt_len) + free

    def ranks(self, held: Held) -> Ranking:
        return self._ranked(held.num_seen, held.prompt_len, held.most, held.memory)

    def act(self, inputs: Inputs, allocator: Allocator | None = None) -> Choice:
        ranked = self._ranked(inputs.num_seen, inputs.prompt_len, inputs.num_slots, inputs.memory)
        assert isinstance(ranked.budget, int)
        choice = Choice(
            inputs.lens, inputs.num_slots, inputs.same(ranked.budget), inputs.received, ranked.sinks, ranked.recent,
            pool=ranked.pool,
        )  # fmt: skip
        if ranked.stem[0]:
            choice.scores, choice.pool = self._revised(inputs.received, *ranked.stem), 1
        return choice

    def _ranked(self, num_seen: int, prompt_len: int, num_slots: int, memory: dict[str, object]) -> Ranking:
        budget = token_budget(self.budget, prompt_len)
        is_first = num_seen == self._first(budget, prompt_len)
        slots = self.slots_after(prompt_len) if is_first else max(1, budget - self._interval(budget))
        held = memory.get("prompt", min(prompt_len, num_slots))  # of the prompt, the first of all
        assert isinstance(held, int)
        all_prompt, answer = held == num_slots, num_seen - prompt_len
        recent = self.recent(slots) if all_prompt else min(self.recent(slots), answer)
        part = max(1, min(round(self.prompt_share * budget), slots - recent))
        part = max(part, slots - answer)  # the answer needs no more yet
        memory["prompt"] = min(held, slots if all_prompt else part)
        sinks, recent = fitting(0 if all_prompt else min(held, part), recent, slots)
        if all_prompt or held <= part:
            return Ranking(By.RECEIVED, slots, sinks, recent, pool=self.kernel)
        return Ranking(By.RECEIVED, slots, 0, recent, pool=self.kernel, stem=(held, part))

    def _revised(self, received: Tensor, held: int, part: int) -> Tensor:
        """Of the first ``held`` slots the ``part`` best stay for sure, and the others go."""
        import torch

        scores = pool_mean(received.flatten(0, 1), self.kernel).view(received.shape)
        best = keep_best(scores[..., :held], scores.new_full(scores.shape[:2], part).long())
        scores[..., :held] = torch.where(best, math.inf, -math.inf)
        return scores

    def slots_after(self, prompt_len: int) -> int:
        """Slots of a head right after the first act; later ones leave ``every`` free."""
        budget = token_budget(self.budget, prompt_len)
        return max(1, budget - self._free(budget))

    def _free(self, budget: int) -> int:
        """Of a small budget ``every`` would be a large part, and a short answer needs none of it."""
        return max(1, min(self._interval(budget), budget // 6))

    def recent(self, slots: int) -> int:
        return max(1, min(self.window, slots // 4))


POLICY = Scope
