"""Perplexity of text that no calibration saw: three quarters of a passage are the prompt, the rest is predicted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from .base import Task, World, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case


def text_cases(world: World, count: int) -> list[Case]:
    """Passages of ``world.length`` tokens, none of them in two; of the last quarter (96 at most) every token counts."""
    cases = []
    for passage in world.passages(count, world.length - len(world.head)):
        ids = [*world.head, *passage]
        cut = len(ids) - max(1, min(96, len(ids) // 4))
        cases.append(sequence_case(ids[:cut], [(ids[cut:], True)]))
    return cases


class Perplexity(Task):
    """exp of the mean negative log-likelihood per token."""

    metrics: ClassVar[dict[str, bool]] = {"perplexity": False}

    def cases(self, world: World, count: int) -> list[Case]:
        return text_cases(world, count)

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        nats = [float(-a.logits.log_softmax(-1).gather(1, a.wanted[:, None]).sum()) for a in answers]
        return {"perplexity": math.exp(sum(nats) / sum(len(a.wanted) for a in answers))}


TASK = Perplexity
