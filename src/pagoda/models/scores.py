"""What a step of a model brings: logits, and perhaps the likeliest token of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layers.step import KVView


@dataclass(slots=True)
class Scores:
    """``logits`` float32 ``[N, vocab_size]``, valid until the next step. ``likeliest``: ids ``[N]``, -1 where no token
    is possible; empty where nobody asked, or where the model leaves that to the sampler.
    """

    logits: Tensor
    likeliest: list[int]


class InParts(Protocol):
    """A model that runs a step in two calls."""

    device: torch.device

    def forward(self, token_ids: Tensor, positions: Tensor, kv: KVView, wanted: Tensor | None = None) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


def scored_by_parts(
    model: InParts, token_ids: list[int], positions: list[int], kv: KVView, wanted: list[int] | None
) -> Scores:
    """A step by ``forward`` and ``logits``: the plain twin of `Model.step`."""
    ids, at = (torch.tensor(numbers, dtype=torch.int64, device=model.device) for numbers in (token_ids, positions))
    rows = None if wanted is None else torch.tensor(wanted, dtype=torch.int64, device=model.device)
    return Scores(model.logits(model.forward(ids, at, kv, rows)), [])
