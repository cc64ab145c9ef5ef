"""Tasks whose answer is dictated by the prompt's end and scored token by token, after a long text."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..recall import flatten, take
from .base import Task, World, sequence_case

if TYPE_CHECKING:
    from ...forced import Answer, Case


class Dictated(Protocol):
    """Texts of a case."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...


class DictatedTask(Task):
    """``metrics`` has one name: the share of the answer's tokens that are the first choice."""

    @abstractmethod
    def dictated(self, seed: int) -> Dictated:
        """The case of a seed."""

    def cases(self, world: World, count: int) -> list[Case]:
        cases = []
        for seed in range(count):
            case = self.dictated(seed)
            prompt, answer = world.encode(f" {case.prompt}"), world.encode(case.answer)
            room = world.length - len(prompt) - len(answer) - len(world.head)
            before = flatten(take(random.Random(seed), world.filler, max(0, room)))
            cases.append(sequence_case([*world.head, *before, *prompt], [(answer, True)]))
        return cases

    def score(self, answers: Sequence[Answer], exact: Sequence[Answer]) -> dict[str, float]:
        (name,) = self.metrics
        hits = [answer.hits for answer in answers]
        return {name: sum(int(h.sum()) for h in hits) / sum(len(h) for h in hits)}
