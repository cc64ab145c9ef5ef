"""A second question about the same text, asked after the KV was compressed for the first one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import TYPE_CHECKING, ClassVar

from ._facts import told
from .base import Task, World, exact_match, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case

PAIRS = tuple(permutations(range(4), 2))


class MultiTurn(Task):
    """Exact match of the second answer (SCBench's shared-context question, arXiv:2412.10319). Nothing in the prompt
    says that it will be asked: what a method dropped for the first question is missing here. In twelve cases every pair
    of the four facts is asked once, so that no place in the text is favoured.
    """

    metrics: ClassVar[dict[str, bool]] = {"multi_turn": True}
    question_known: ClassVar[bool] = False

    def cases(self, world: World, count: int) -> list[Case]:
        cases = []
        for seed in range(count):
            ids, facts = told(world, 7000 + seed, 4, reserve=48)
            first, second = (facts[at] for at in PAIRS[seed % len(PAIRS)])
            ids += [*world.encode(first.question), *world.encode(first.lead)]
            turn = [*world.encode(first.value), *world.encode(first.end), *world.encode(second.question)]
            pieces = [([*turn, *world.encode(second.lead)], False), (world.encode(second.value), True)]
            cases.append(sequence_case(ids, pieces))
        return cases

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        return {"multi_turn": exact_match(answers)}


TASK = MultiTurn
