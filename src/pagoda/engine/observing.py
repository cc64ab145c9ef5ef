"""What a step tells the policies: attention that slots got, newest queries and hidden states go to their states."""

from __future__ import annotations

import torch

from ..kernels.ops import add_sums
from ..kernels.ops.add_sums import Targets
from ..kv.view import Received
from .runner import Piece, StepResult, hidden_wanted


def observe(result: StepResult) -> None:
    """To be called when the step's tokens are committed, before any policy acts."""
    for index in result.view.added:
        _note(result.pieces[index])
    for received in result.view.received:
        _add(received, [result.pieces[index] for index in received.members])
    for piece in result.pieces:
        if num := hidden_wanted(piece):
            assert result.hidden is not None
            last = piece.first_row + piece.num_tokens
            piece.sequence.policy_state.add_hidden(result.hidden[last - num : last])
    tap = result.tap
    if tap is None or not tap.spans:
        return
    queries = torch.stack([tap.queries[layer] for layer in sorted(tap.queries)])
    for index, (first, last) in tap.spans.items():
        piece = result.pieces[index]
        piece.sequence.policy_state.add_queries(
            queries[:, first:last], piece.start + piece.num_tokens, tap.scale, tap.soft_cap
        )


def _add(received: Received, pieces: list[Piece]) -> None:
    states, room = [piece.sequence.policy_state for piece in pieces], received.num_slots
    device = received.sums.device
    sums = [state.receives(num, device) for state, num in zip(states, room, strict=True)]
    add_sums(received.sums, Targets(sums))
    if received.counts is not None:
        which = [i for i, state in enumerate(states) if state.counts_up]
        counts = received.counts if len(which) == len(states) else received.counts[:, which]
        add_sums(counts, Targets([states[i].counts(room[i], device) for i in which]))
    for piece in pieces:
        _note(piece)


def _note(piece: Piece) -> None:
    """What the slots of the piece's sequence received is remembered."""
    state = piece.sequence.policy_state
    if state.sums_up:
        state.summed = piece.start + piece.num_tokens
