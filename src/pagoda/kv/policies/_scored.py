"""From scores and a budget to slots that stay, for all layers and heads at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, share, token_budget
from ._vote import pool_mean
from .base import Allocator, By, Choice, Decision, Eviction, Held, Ranking, said_of

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs, LayerInputs


@dataclass(frozen=True)
class Once(Eviction):
    """Acts when the prompt is complete; what is generated afterwards is kept.

    ``budget``: tokens per head that stay of the prompt (a whole number), or a share of it (a fraction up to 1.0).
    """

    budget: int | float = 0.25

    def __post_init__(self) -> None:
        token_budget(self.budget, prompt_len=1)

    def next_act(self, num_seen: int, prompt_len: int) -> int | None:
        return prompt_len if num_seen < prompt_len and prompt_len > token_budget(self.budget, prompt_len) else None

    def most_slots(self, num_seen: int, prompt_len: int) -> float:
        budget = token_budget(self.budget, prompt_len)
        return num_seen if num_seen < prompt_len else min(budget, prompt_len) + num_seen - prompt_len

    def slots_after(self, prompt_len: int) -> int:
        """Slots of a head, on the average, right after an act."""
        return token_budget(self.budget, prompt_len)


@dataclass(frozen=True)
class Rolling(Eviction):
    """Acts when the prompt is complete and whenever a head is full again: it never holds more than the budget.

    ``budget``: most tokens per head (a whole number), or a share of the prompt (a fraction up to 1.0).
    ``every``: tokens from one act to the next. An act leaves ``budget - every`` slots, which then fill up; papers that
    drop one token a step are ``every=1``. Moving a head's slots up once for several tokens is what makes it cheap.
    A method with ``in_prompt`` acts in the prompt as well, so that no prompt is ever whole in memory.
    """

    in_prompt: ClassVar[bool] = False
    budget: int | float = 0.25
    every: int = 32

    def __post_init__(self) -> None:
        token_budget(self.budget, prompt_len=1)
        at_least("every", self.every, 1)

    def next_act(self, num_seen: int, prompt_len: int) -> int | None:
        budget = token_budget(self.budget, prompt_len)
        first = self._first(budget, prompt_len)
        if num_seen < first:
            return first
        every = self._interval(budget)
        return first + ((num_seen - first) // every + 1) * every

    def most_slots(self, num_seen: int, prompt_len: int) -> float:
        budget = token_budget(self.budget, prompt_len)
        return num_seen if num_seen < self._first(budget, prompt_len) else budget

    def _first(self, budget: int, prompt_len: int) -> int:
        return budget if self.in_prompt else max(prompt_len, budget)

    def slots_after(self, prompt_len: int) -> int:
        """Slots of a head, on the average, right after an act."""
        budget = token_budget(self.budget, prompt_len)
        return max(1, budget - self._interval(budget))

    def _interval(self, budget: int) -> int:
        return max(1, min(self.every, budget // 2))


class Scored(Eviction):
    """Keeps the slots with the highest scores. Mixed into ``Once`` or ``Rolling``, with one formula to write.

    ``sinks`` first slots and ``recent`` newest ones stay whatever their score.
    """

    sinks = 0
    least: ClassVar[float] = -math.inf  # slots with a lower score go, even where the budget has room
    allots = False  # whether the method divides its budget itself
    by: ClassVar[By | None] = None
    """What ``scores`` are in the kernels' words, if they have any. A class that changes them says so again."""

    @property
    def pool(self) -> int:
        """A slot's score is the mean over so many neighbours (odd); what is beyond the ends counts 0."""
        return 1

    def recent(self, slots: int) -> int:
        """Newest slots that stay, of ``slots`` that stay in all."""
        return self.window

    def score(self, layer: LayerInputs) -> Tensor:
        """float32 [H, N] for one layer: the higher, the better a reason to stay. Slots beyond a head do not matter."""
        raise NotImplementedError

    def scores(self, inputs: Inputs) -> Tensor:
        """float32 [L, H, N]; by default layer by layer."""
        import torch

        return torch.stack([self.score(layer) for layer in inputs.layers()])

    def allot(self, inputs: Inputs, scores: Tensor, slots: int) -> Tensor:
        """int64 [L, H]: slots that each head keeps; by default the same for all."""
        return inputs.lens.new_full(inputs.lens.shape, slots)

    @cached_property
    def ranked_by(self) -> By | None:
        """``by``, of the class that says what the scores are and who keeps how many."""
        return said_of(type(self), "by", {"score", "scores", "allot", "act"})  # type: ignore[return-value]

    def ranks(self, held: Held) -> Ranking | None:
        if self.ranked_by is None:
            return None
        slots = self.slots_after(held.prompt_len)  # type: ignore[attr-defined]
        sinks, recent = fitting(self.sinks, self.recent(slots), slots)
        return Ranking(self.ranked_by, slots, sinks, recent, self.least, self.pool)

    def act(self, inputs: Inputs, allocator: Allocator | None = None) -> Decision | Choice | None:
        slots = self.slots_after(inputs.prompt_len)  # type: ignore[attr-defined]
        scores = self.scores(inputs)
        if allocator is not None:
            scores = pool_mean(scores, self.pool) if self.pool > 1 else scores
            scores = protect(scores, inputs, self.sinks, self.recent(slots), slots)
            return Choice(inputs.lens, inputs.num_slots, allocator.allot(scores, inputs.lens, slots), scores)
        sinks, recent = fitting(self.sinks, self.recent(slots), slots)
        same = type(self).allot is Scored.allot
        budgets = inputs.same(slots) if same else self.allot(inputs, scores, slots)
        return Choice(inputs.lens, inputs.num_slots, budgets, scores, sinks, recent, self.least, self.pool)


@dataclass(frozen=True)
class ScoredAndNewest(Scored, Rolling):
    """Acts again and again: ``recent_share`` of the budget are the newest tokens, the rest the best by score."""

    recent_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        share("recent_share", self.recent_share)

    def recent(self, slots: int) -> int:
        return round(self.recent_share * slots)


def fitting(sinks: int, recent: int, slots: int) -> tuple[int, int]:
    """As many sinks and newest slots as fit into ``slots``, the newest one first."""
    sinks = max(0, min(sinks, slots - 1))
    return sinks, max(1, min(recent, slots - sinks))


def protect(scores: Tensor, inputs: Inputs, sinks: int, recent: int, slots: int) -> Tensor:
    """Scores with inf for the first ``sinks`` and the last ``recent`` slots of each head (as many of them as fit into
    ``slots``, the newest one first), -inf beyond its length.
    """
    import torch

    sinks, recent = fitting(sinks, recent, slots)
    at = torch.arange(inputs.num_slots, device=inputs.lens.device)
    sure = (at < sinks) | (at >= inputs.lens[..., None] - recent)
    return scores.masked_fill(sure, math.inf).masked_fill(~inputs.valid, -math.inf)


def keep_best(scores: Tensor, budgets: Tensor) -> Tensor:
    """bool [L, H, N]: the ``budgets`` [L, H] best slots of each head; of equals the newest. -inf never stays."""
    from ...kernels.ops import keep_best as choose

    return choose(scores, budgets.new_full(budgets.shape, scores.shape[-1]), budgets)
