"""Filters over rows of logits that some rows switch off: what the four sampling masks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import Needs


def needs(logits: Tensor) -> Needs:
    """What a mask asks of an implementation."""
    return Needs(logits.device.type, (logits.dtype,))


def on_active_rows(
    logits: Tensor, parameter: Tensor, active: Tensor, hidden: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Logits ``[N, V]`` with -inf where ``hidden(rows, their parameters)`` is true; rows not ``active [N]`` untouched.

    Returns the tensor itself when no row is active, else a new one.
    """
    index = active.nonzero().squeeze(-1)
    if index.numel() == 0:
        return logits
    if index.numel() == logits.shape[0]:
        return logits.masked_fill(hidden(logits, parameter), -torch.inf)
    rows = logits.index_select(0, index)
    rows = rows.masked_fill(hidden(rows, parameter.index_select(0, index)), -torch.inf)
    return logits.index_copy(0, index, rows)
