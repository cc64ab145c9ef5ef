"""A machine whose steps can be added up in the head."""

from __future__ import annotations

from pagoda.core.types import KVFormat
from pagoda.plan.work import StepModel

FMT = KVFormat(1, 1, 64, 64, 16, "bfloat16")


class Linear(StepModel):
    """10 ms a step and 1 ms a token; ``slot`` seconds for each slot that they see."""

    def __init__(self, slot: float = 0.0) -> None:
        self.slot = slot

    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        return 0.01 + 0.001 * (decodes + chunk) + self.slot * (slots + pairs)
