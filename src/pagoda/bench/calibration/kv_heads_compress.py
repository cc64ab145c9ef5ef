"""Directions that neighbouring heads have in common (Effectively Compress KV Heads, arXiv:2406.07056)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...kv.policies.kv_heads_compress import GROUPS, KVHeadsCompress
from ..quality.tasks.base import World
from .base import Seen, run, sample_ids, usual


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``keys2`` [L, H / 2, 2 D, D] and ``values2`` for pairs of heads, ``keys4`` and ``values4`` for four, where they
    divide the heads. Raises ConfigError where none do.
    """
    heads = shape.num_kv_heads
    if all(heads % group for group in GROUPS):
        raise ConfigError(f"kv_heads_compress joins 2 or 4 heads, and this model has {heads}; choose eigen_attention")
    seen: list[list[Seen]] = [[] for _ in range(shape.num_layers)]
    cases = sample_ids(world)
    with torch.inference_mode():
        for ids in cases:
            run(model, ids, usual, lambda one: seen[one.layer].append(one))
    k, v = (
        torch.stack([torch.cat([getattr(one, name) for one in mine]).transpose(0, 1) for mine in seen])
        for name in ("k", "v")
    )
    return KVHeadsCompress.learn(k, v), {"cases": len(cases)}


CALIBRATE = calibrate
