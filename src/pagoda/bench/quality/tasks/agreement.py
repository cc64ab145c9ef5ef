"""Agreement with the exact cache on running text: KL divergence, and how often the first choice is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch

from .base import Task, World
from .perplexity import text_cases

if TYPE_CHECKING:
    from ...forced import Answer, Case


class Agreement(Task):
    """Both are teacher-forced, with perplexity's passages. ``kl``: nats a token, exact || method. ``top1``: a share."""

    metrics: ClassVar[dict[str, bool]] = {"kl": False, "top1": True}

    def cases(self, world: World, count: int) -> list[Case]:
        return text_cases(world, count)

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        kl, same, total = 0.0, 0, 0
        for mine, theirs in zip(answers, exact, strict=True):
            log_p, log_q = theirs.logits.log_softmax(-1), mine.logits.log_softmax(-1)
            kl += float(torch.sum(log_p.exp() * (log_p - log_q)))
            same += int((mine.logits.argmax(-1) == theirs.logits.argmax(-1)).sum())
            total += len(mine.wanted)
        return {"kl": max(0.0, kl / total), "top1": same / total}


TASK = Agreement
