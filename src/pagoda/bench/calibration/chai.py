"""Which heads of a layer look alike (CHAI, arXiv:2403.08058)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...kv.policies.chai import CHAI
from ..quality.tasks.base import World
from .base import run, sample_ids


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``reps`` [L, H, H], see ``CHAI.clusters``: heads are as alike as their maps (cosine, over every seventh query).

    Raises ConfigError for a model with one kv-head.
    """
    if shape.num_kv_heads == 1:
        raise ConfigError("chai joins kv-heads, and this model has one; choose eigen_attention")
    likeness = torch.zeros(shape.num_layers, shape.num_kv_heads, shape.num_kv_heads)

    def watch(layer: int, probs: Tensor, values: Tensor) -> None:
        maps = probs.view(len(values), -1, *probs.shape[1:])[:, :, ::7].flatten(1)
        likeness[layer] += maps @ maps.T

    cases = sample_ids(world)
    with torch.inference_mode():
        for ids in cases:
            run(model, ids, watch)
    found = CHAI.clusters(likeness)
    return found, {"cases": len(cases)}


CALIBRATE = calibrate
