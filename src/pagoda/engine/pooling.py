"""Embeddings: hidden states of a prompt (after the final norm) pooled to one vector, chunk by chunk."""

from __future__ import annotations

import torch

from ..core.errors import ConfigError, choices
from .runner import Piece, StepResult

POOLINGS = ("mean", "last")


def check_pooling(pooling: str | None) -> None:
    """Raises ConfigError for a pooling that does not exist; None is a request that generates."""
    if pooling is not None and pooling not in POOLINGS:
        raise ConfigError(choices("pooling", pooling, POOLINGS))


def pool(piece: Piece, result: StepResult) -> list[float] | None:
    """Takes this piece's hidden states in; the vector (float32, hidden_size values) once the prompt is complete.

    ``mean`` sums in float32 over all tokens: its sequence reads no cached prefix, and begins anew after a preemption.
    """
    group = piece.sequence.group
    assert result.hidden is not None
    rows = result.hidden[piece.first_row : piece.first_row + piece.num_tokens]
    if group.request.pooling == "last":
        return rows[-1].float().tolist() if piece.completes else None
    part = rows.sum(0, dtype=torch.float32)
    group.pooled = part if piece.start == 0 else group.pooled + part  # type: ignore[operator]
    if not piece.completes:
        return None
    mean = group.pooled / piece.sequence.num_tokens
    group.pooled = None
    return mean.tolist()
