"""What a policy is asked while a forward pass runs. If it raises, the pass goes on: its sequence reads all that it has
for the rest of it, nobody else loses a token to a method that is not theirs, and its request ends with the step
(`Sequence.asks`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from ..kv.choices import Choice
from ..kv.offload.storage import TierError
from ..kv.storage import PageStorage
from ..kv.table import PageTable
from ..kv.watching import Residual
from .selection import PageChooser
from .selection_notes import PageNoter, full_pages
from .sequence import Sequence

Answer = TypeVar("Answer")


class GuardedChooser:
    """As `kv.choices.Chooser`. While a choice stands nobody is asked: of 32 sequences, asking took 4 % of a step."""

    def __init__(self, sequence: Sequence, storage: PageStorage, table: PageTable, num_q_heads: int) -> None:
        self._sequence, self._storage, self._table, self._num_q_heads = sequence, storage, table, num_q_heads
        self._notes = sequence.policy_state.notes

    @cached_property
    def _chooser(self) -> PageChooser:
        policy, learned = self._sequence.policy, self._sequence.group.learn()
        assert policy.selection is not None
        return PageChooser(
            policy.selection, self._notes, self._storage, self._table, learned, self._num_q_heads, policy.lossy
        )

    def reads_all(self) -> bool:
        """Whether there are no more pages than the policy reads, so that nothing is chosen and the sequence is read as
        any other; the step is counted then.
        """
        notes = self._notes
        if notes.standing is not None or self._sequence.broken:
            return False
        full = full_pages(self._table)
        if notes.spared is None or notes.spared[0] != full:
            num = self._ask(self._chooser.pages_if_all, lambda: 0)
            notes.spared = (full, num) if num else None
        if notes.spared is None:
            return False
        notes.pages_held += notes.spared[1]
        notes.pages_read += notes.spared[1]
        return True

    @property
    def has_rule(self) -> bool:
        if self._notes.standing is not None:
            return True
        return self._ask(lambda: self._chooser.has_rule, lambda: True)

    @property
    def moves(self) -> bool:
        return self._chooser.moves

    def choice(self) -> Choice:
        if not self._sequence.broken:
            standing = self._notes.stands(full_pages(self._table))
            if standing is not None and standing.renew(self._table.num_tokens):
                self._notes.count(standing)
                return standing.choice
        return self._ask(self._chooser.choice, self._chooser.choice_of_all)

    def choose(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return self._ask(lambda: self._chooser.choose(layer, q, scale), lambda: self._chooser.all_pages(layer))

    def copies(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor, int]:
        return self._ask(lambda: self._chooser.copies(layer, q, scale), lambda: self._chooser.copies_of_all(layer))

    def _ask(self, question: Callable[[], Answer], otherwise: Callable[[], Answer]) -> Answer:
        """Keys that do not come from their tier are not the policy's fault: who reads them knows what to say."""
        return self._sequence.asks("choosing pages", question, otherwise, but=TierError)


class GuardedNoter:
    """As `kv.view.Noter`; what broke has no more to note."""

    def __init__(self, sequence: Sequence, noter: PageNoter) -> None:
        self._sequence, self._noter = sequence, noter

    def first(self, layer: int, heads: slice) -> int:
        return sys.maxsize if self._sequence.broken else self._noter.first(layer, heads)

    def note(self, layer: int, heads: slice, first: int, keys: Tensor) -> None:
        self._sequence.asks("noting pages", lambda: self._noter.note(layer, heads, first, keys), lambda: None)


def guarded_residual(sequence: Sequence) -> Residual:
    """What its evicted slots answer; nothing once that broke."""
    eviction, state, learned = sequence.policy.eviction, sequence.policy_state, sequence.group.learn()
    assert eviction is not None

    def residual(q: Tensor, layer: int) -> tuple[Tensor, Tensor] | None:
        found = eviction.residual(q, layer, state.memory, learned)
        if found is not None:
            sink, mean = found
            if sink.shape != q.shape[:1] or mean.shape[:1] != q.shape[:1]:
                raise ValueError(f"{tuple(sink.shape)} and {tuple(mean.shape)} for {q.shape[0]} query heads")
        return found

    return lambda q, layer: sequence.asks("answering for evicted slots", lambda: residual(q, layer), lambda: None)
