"""Counting back from a number, after a long text: what hangs on the newest tokens alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..counting import count_back_case
from ..recall import flatten, take
from .base import Task, World, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case


class Counting(Task):
    """Share of the numbers' tokens that are the first choice."""

    metrics: ClassVar[dict[str, bool]] = {"counting": True}

    def cases(self, world: World, count: int) -> list[Case]:
        cases = []
        for seed in range(count):
            case = count_back_case(seed, 8)
            prompt, answer = world.encode(f" {case.prompt}"), world.encode(case.answer)
            room = world.length - len(prompt) - len(answer) - len(world.head)
            before = flatten(take(random.Random(seed), world.filler, max(0, room)))
            cases.append(sequence_case([*world.head, *before, *prompt], [(answer, True)]))
        return cases

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        hits = [answer.hits for answer in answers]
        return {"counting": sum(int(h.sum()) for h in hits) / sum(len(h) for h in hits)}


TASK = Counting
