"""Recall among many facts of the same form: the key must be read, not just the kind of thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from .base import Task, World, exact_match, sequence_case
from .recall import planted

if TYPE_CHECKING:
    from ...forced import Answer, Case


class MultiKey(Task):
    """Exact match with eight distractors (RULER's multi-key retrieval, arXiv:2404.06654)."""

    metrics: ClassVar[dict[str, bool]] = {"multi_key": True}

    def cases(self, world: World, count: int) -> list[Case]:
        distance = int(0.9 * world.length)
        found = [planted(world, 5000 + seed, distance, 8, distractors=8) for seed in range(count)]
        return [sequence_case(case.prompt_ids, [(case.answer_ids, True)]) for case in found]

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        return {"multi_key": exact_match(answers)}


TASK = MultiKey
