"""What is in a step, and whoever knows how long it takes: the planner and the simulator ask the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """One step: ``decodes`` sequences of ``context`` slots with a token each, and ``chunk`` tokens of a prompt after
    ``start`` others. ``rows`` are sampled.
    """

    decodes: int = 0
    context: float = 0.0
    chunk: int = 0
    start: int = 0
    rows: int = 0

    @property
    def tokens(self) -> int:
        return self.decodes + self.chunk


class StepModel(ABC):
    """Seconds of a step of one model, run in one way on one machine."""

    @abstractmethod
    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        """``decodes`` tokens read ``slots`` slots of KV together, ``chunk`` prompt tokens see ``pairs`` (token, slot)
        pairs, ``rows`` tokens are sampled. The same numbers always give the same seconds.
        """

    def seconds(self, work: Work) -> float:
        """Of one step."""
        pairs = work.chunk * (work.start + work.chunk / 2)
        return self.step_seconds(work.decodes, work.decodes * work.context, work.chunk, pairs, work.rows)
