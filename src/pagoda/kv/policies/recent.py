"""Keep the last ``budget`` tokens of every head: the control that other eviction methods must beat."""

from __future__ import annotations

from dataclasses import dataclass

from ._budget import token_budget
from .base import Keep, KVPolicy, PolicyInputs


@dataclass(frozen=True)
class Recent(KVPolicy):
    """``budget``: tokens per head (a whole number), or a share of the prompt (a fraction up to 1.0)."""

    budget: int | float = 0.5

    def __post_init__(self) -> None:
        token_budget(self.budget, prompt_len=1)

    def select(self, inputs: PolicyInputs, state: object) -> Keep | None:
        budget = token_budget(self.budget, inputs.prompt_len)
        return {
            (layer, head): range(length - budget, length)
            for layer, lens in enumerate(inputs.lens)
            for head, length in enumerate(lens)
            if length > budget
        }


POLICY = Recent
