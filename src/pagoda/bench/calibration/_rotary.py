"""How far a model's channels turn from one position to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError


def frequencies(model: Any, length: int, method: str, instead: str) -> Tensor:
    """float32 [L, 1, D / 2], for texts of ``length`` tokens. Raises ConfigError for models whose keys are not rotated
    whole, first half with second, with what to choose ``instead``.
    """
    from ...models.layers.rotary import inverse_frequencies

    spec = getattr(model, "spec", None)
    ropes = [block.attn.rope for block in spec.blocks] if spec is not None else [None]
    dims = [block.attn.head_dim for block in spec.blocks] if spec is not None else [0]
    for rope, dim in zip(ropes, dims, strict=True):
        if rope is None or rope.interleaved or rope.dim != dim:
            raise ConfigError(
                f"{method} takes rotary positions out of the keys, and this model's keys are not rotated whole, first "
                f"half with second; choose {instead}"
            )
    return torch.stack([inverse_frequencies(rope, length)[None] for rope in ropes])
