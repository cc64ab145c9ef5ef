"""What a step tells the policies: attention that slots got, newest queries and hidden states go to their states."""

from __future__ import annotations

import torch

from ..kernels.ops import add_sums
from ..kernels.ops.add_sums import Targets
from ..kv.view import Received
from .runner import Piece, StepResult, hidden_wanted


def observe(result: StepResult, due: list[Piece]) -> None:
    """To be called when the step's tokens are committed, before the policies of the ``due`` ones act."""
    for received in result.view.received:
        _add(received, [result.batch[index] for index in received.members])
    for piece in result.pieces:
        if piece.sequence.policy_state.sees_hidden and (num := hidden_wanted(piece)):
            assert result.hidden is not None
            last = piece.first_row + piece.num_tokens
            piece.sequence.policy_state.add_hidden(result.hidden[last - num : last])
    if due and (result.view.added or result.view.received):
        summed = [*result.view.added, *(index for received in result.view.received for index in received.members)]
        _note(due, [result.batch[index] for index in summed])
    tap = result.tap
    if tap is None or not tap.spans:
        return
    if tap.in_rings:
        for index in tap.spans:
            piece = result.batch[index]
            piece.sequence.policy_state.noted(piece.start + piece.num_tokens, tap.scale, tap.soft_cap)
        return
    queries = torch.stack([tap.queries[layer] for layer in sorted(tap.queries)])
    for index, (first, last) in tap.spans.items():
        piece = result.batch[index]
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


def _note(due: list[Piece], summed: list[Piece]) -> None:
    """What slots received since the last act is all there: of the tokens before one all were summed up, or none."""
    for piece in due:
        state = piece.sequence.policy_state
        if state.sums_up and any(piece is one for one in summed):
            state.summed = piece.start + piece.num_tokens
