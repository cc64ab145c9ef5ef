"""Several questions in one prompt, answered one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from ._facts import told
from .base import Task, World, exact_match, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case


class MultiQuery(Task):
    """Exact match of all three values (RULER's multi-query retrieval, arXiv:2404.06654). All questions stand in the
    prompt, so a method that compresses at its end has seen them.
    """

    metrics: ClassVar[dict[str, bool]] = {"multi_query": True}

    def cases(self, world: World, count: int) -> list[Case]:
        cases = []
        for seed in range(count):
            ids, facts = told(world, 6000 + seed, 6, reserve=96)
            asked = facts[::2]
            ids += [token for fact in asked for token in world.encode(fact.question)]
            ids += world.encode(asked[0].lead)
            pieces: list[tuple[list[int], bool]] = [(world.encode(asked[0].value), True)]
            for before, fact in pairwise(asked):
                pieces += [(world.encode(before.end), False), (world.encode(fact.lead), False)]
                pieces += [(world.encode(fact.value), True)]
            cases.append(sequence_case(ids, pieces))
        return cases

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        return {"multi_query": exact_match(answers)}


TASK = MultiQuery
