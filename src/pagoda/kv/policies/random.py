"""Keep ``budget`` tokens per head, drawn at random for each head: the other control."""

from __future__ import annotations

from dataclasses import dataclass

from ._budget import token_budget
from .base import Keep, KVPolicy, PolicyInputs


@dataclass(frozen=True)
class Random(KVPolicy):
    """``budget``: tokens per head (a whole number), or a share of the prompt (a fraction up to 1.0).

    The draw depends on the request's seed, the layer, the head and the tokens seen, on nothing else: a recomputed
    sequence keeps the same slots. The newest token always stays.
    """

    budget: int | float = 0.5

    def __post_init__(self) -> None:
        token_budget(self.budget, prompt_len=1)

    def select(self, inputs: PolicyInputs, state: object) -> Keep | None:
        import numpy as np

        budget = token_budget(self.budget, inputs.prompt_len)
        keep: dict[tuple[int, int], list[int]] = {}
        for layer, lens in enumerate(inputs.lens):
            for head, length in enumerate(lens):
                if length > budget:
                    rng = np.random.default_rng((inputs.seed, inputs.num_seen, layer, head))
                    drawn = rng.choice(length - 1, budget - 1, replace=False)
                    keep[layer, head] = [*sorted(drawn.tolist()), length - 1]
        return keep


POLICY = Random
