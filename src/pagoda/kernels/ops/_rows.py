"""Filters over rows of logits that some rows switch off: what the four sampling masks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Make
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


def rows(make: Make, count: int, vocab: int, ties: bool) -> Tensor:
    """Logits for the cases, some of them -inf already; ``ties``: rounded so that many are equal."""
    logits = make.normal(count, vocab, scale=3.0)
    logits[:, vocab // 2 :: 7] = -torch.inf
    return logits.round() if ties else logits
