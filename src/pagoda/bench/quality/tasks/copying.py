"""Copying a list of words that make no sense together, after a long text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..copying import copy_case
from ..recall import flatten, take
from .base import Task, World, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case


class Copying(Task):
    """Share of the words' tokens that are the first choice. Every word counts, so there is nothing to leave out."""

    metrics: ClassVar[dict[str, bool]] = {"copying": True}

    def cases(self, world: World, count: int) -> list[Case]:
        cases = []
        for seed in range(count):
            case = copy_case(seed, 16)
            prompt, answer = world.encode(f" {case.prompt}"), world.encode(case.answer)
            room = world.length - len(prompt) - len(answer) - len(world.head)
            before = flatten(take(random.Random(seed), world.filler, max(0, room)))
            cases.append(sequence_case([*world.head, *before, *prompt], [(answer, True)]))
        return cases

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        hits = [answer.hits for answer in answers]
        return {"copying": sum(int(h.sum()) for h in hits) / sum(len(h) for h in hits)}


TASK = Copying
