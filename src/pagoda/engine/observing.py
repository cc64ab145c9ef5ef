"""What a step tells the policies: attention that slots received, and newest queries, go to the sequences' states."""

from __future__ import annotations

import weakref

import torch

from ..kernels.ops import add_sums
from ..kernels.ops.add_sums import Targets
from ..kv.policies.base import Need
from ..kv.view import Received
from .policy_state import PolicyState
from .runner import Piece, StepResult


class Observer:
    """Remembers where the last step's sums went: a step of the same sequences, as most are, asks none of them again.
    What is remembered ends with the first of those sequences, so that it keeps nobody's memory.
    """

    def __init__(self) -> None:
        self._states: list[weakref.ref[PolicyState]] = []
        self._edits: list[int] = []  # of each state: the same numbers, the same tensors
        self._counting: list[int] = []  # of the states, those that count too
        self._sums, self._counts = Targets([]), Targets([])
        self._room = 0  # slots that every target has room for

    def forget(self, _: object = None) -> None:
        """Nothing is remembered any more."""
        self.__init__()  # type: ignore[misc]

    def observe(self, result: StepResult) -> None:
        """To be called when the step's tokens are committed, before any policy acts."""
        for received in result.view.received:
            self._add(received, [result.pieces[index] for index in received.members])
        if not result.tap.spans:
            return
        queries = torch.stack([result.tap.queries[layer] for layer in sorted(result.tap.queries)])
        for index, (first, last) in result.tap.spans.items():
            piece = result.pieces[index]
            piece.sequence.policy_state.add_queries(
                queries[:, first:last], piece.start + piece.num_tokens, result.tap.scale, result.tap.soft_cap
            )

    def _add(self, received: Received, pieces: list[Piece]) -> None:
        states = [piece.sequence.policy_state for piece in pieces]
        if [state.edits for state in states] != self._edits or max(received.num_slots) > self._room:
            self._find(received, pieces, states)
        add_sums(received.sums, self._sums)
        if self._counting:
            assert received.counts is not None
            all_count = len(self._counting) == len(states)
            add_sums(received.counts if all_count else received.counts[:, self._counting], self._counts)
        for state, piece in zip(states, pieces, strict=True):
            if state.sums_up:
                state.summed = piece.start + piece.num_tokens

    def _find(self, received: Received, pieces: list[Piece], states: list[PolicyState]) -> None:
        device, room = received.sums.device, received.num_slots
        self._sums = Targets([state.receives(num, device) for state, num in zip(states, room, strict=True)])
        self._counting = [i for i, piece in enumerate(pieces) if Need.WANTED in piece.sequence.policy.needs]
        self._counts = Targets([states[i].counts(room[i], device) for i in self._counting])
        self._room = min(target.shape[-1] for target in [*self._sums, *self._counts])
        self._states = [weakref.ref(state, self.forget) for state in states]
        self._edits = [state.edits for state in states]
