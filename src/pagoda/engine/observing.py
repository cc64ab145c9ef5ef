"""What a step tells the policies: attention that slots got, newest queries and hidden states go to their states."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.ops import add_sums
from ..kernels.ops.add_sums import Targets
from ..kv.watching import Received
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
    """Layers of which a policy remembers nothing are left out."""
    lossy = [piece.sequence.policy.lossy for piece in pieces]
    for layers in dict.fromkeys(lossy):
        of_layers = slice(None) if layers is None else list(layers.index)
        mine = [i for i, one in enumerate(lossy) if one == layers]
        states, room = [pieces[i].sequence.policy_state for i in mine], [received.num_slots[i] for i in mine]
        device = received.sums.device
        sums = [state.receives(num, device) for state, num in zip(states, room, strict=True)]
        add_sums(_of(received.sums[of_layers], mine), Targets(sums))
        if received.counts is not None:
            which = [at for at, state in enumerate(states) if state.counts_up]
            counts = [states[at].counts(room[at], device) for at in which]
            add_sums(_of(received.counts[of_layers], [mine[at] for at in which]), Targets(counts))


def _of(sums: Tensor, which: list[int]) -> Tensor:
    """[L, S, H, N] of these sequences."""
    return sums if len(which) == sums.shape[1] else sums[:, which]


def _note(due: list[Piece], summed: list[Piece]) -> None:
    """What slots received since the last act is all there: of the tokens before one all were summed up, or none."""
    for piece in due:
        state = piece.sequence.policy_state
        if state.sums_up and any(piece is one for one in summed):
            state.summed = piece.start + piece.num_tokens
