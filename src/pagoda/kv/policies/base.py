"""The contract of a KV policy: what it needs to see, when it acts, and which slots it keeps.

A policy is a frozen dataclass of its parameters. The engine does the rest: copy-on-write of shared pages, compaction,
freeing, preemption and resume. State of one sequence comes from ``new_state`` and lives with the sequence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from ...core.types import Granularity

if TYPE_CHECKING:
    import numpy as np

Keep = Mapping[tuple[int, int], Sequence[int]]


class Need(StrEnum):
    """What a policy must be shown beside lengths."""

    PROBS = "probability sums"


@dataclass(slots=True)
class PolicyInputs:
    """One sequence at the end of a step.

    ``lens[layer][head]`` slots held now; ``num_seen`` tokens computed so far; ``prompt_len`` tokens of the prompt.
    ``probs(layer)`` float32 [num_kv_heads, slots]: attention probability that each slot received in this step, summed
    over the chunk's queries and the query heads of the group (only for policies that declare ``Need.PROBS``).
    """

    num_layers: int
    num_kv_heads: int
    lens: Sequence[Sequence[int]]
    num_seen: int
    prompt_len: int
    seed: int
    probs: Callable[[int], np.ndarray]


class KVPolicy(ABC):
    """Decides what KV a sequence keeps. Lossy unless ``exact``."""

    granularity: ClassVar[Granularity] = Granularity.HEAD
    needs: ClassVar[frozenset[Need]] = frozenset()
    exact: ClassVar[bool] = False

    def new_state(self) -> object:
        """What one sequence must remember between steps; thrown away (and made anew) with a preemption."""
        return None

    @abstractmethod
    def select(self, inputs: PolicyInputs, state: object) -> Keep | None:
        """Slots to keep per (layer, head), ascending; heads not named stay as they are. None changes nothing.

        Called after the step that completes the prompt and after every later step. The answer may depend on nothing but
        the arguments, so that a sequence that was preempted and recomputed ends in the same state.
        """
