"""Recall of one planted fact, over distance and depth; the question is known when the prompt ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..recall import RecallCase, Wrap, recall_case
from .base import Task, World, exact_match, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case

DISTANCES, DEPTHS = (0.25, 0.5, 0.9), (0.0, 0.5, 1.0)
FORMS = ("number", "key_value", "place", "password")


def planted(
    world: World, seed: int, distance: int, depth: int, *, distractors: int = 3, ask: bool = True
) -> RecallCase:
    """A case of ``bench.quality.recall`` in this world; the form of the fact goes round with the seed."""
    return recall_case(
        seed, world.encode, world.filler, distance=distance, depth=depth, distractors=distractors,
        forms=(FORMS[seed % len(FORMS)],), wrap=Wrap(world.head), ask=ask,
    )  # fmt: skip


class Recall(Task):
    """Exact match. Distances are shares of the length, depths shares of what is left before the fact."""

    metrics: ClassVar[dict[str, bool]] = {"recall": True}

    def cases(self, world: World, count: int) -> list[Case]:
        cases = []
        for seed in range(count):
            share, part = DISTANCES[seed % 3], DEPTHS[seed // 3 % 3]
            distance = max(96, int(share * world.length))
            depth = len(world.head) + int(part * max(0, world.length - distance - 32))
            case = planted(world, seed, distance, depth)
            tags: dict[str, int | str] = {"distance": distance, "depth": depth, "form": case.fact.form}
            cases.append(sequence_case(case.prompt_ids, [(case.answer_ids, True)], **tags))
        return cases

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        return {"recall": exact_match(answers)}


def heat(answers: Sequence[Answer]) -> dict[tuple[int, int], float]:
    """Exact match by (distance, depth)."""
    groups: dict[tuple[int, int], list[Answer]] = {}
    for answer in answers:
        place = (int(answer.case.tags["distance"]), int(answer.case.tags["depth"]))
        groups.setdefault(place, []).append(answer)
    return {place: exact_match(group) for place, group in sorted(groups.items())}


TASK = Recall
