"""Bases of keys with queries, and of values (Eigen Attention, arXiv:2408.05646)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kv.policies.eigen_attention import EigenAttention
from ..quality.tasks.base import World
from .base import Seen, run, sample_ids, usual


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``keys`` [L, H, D, D] and ``values``, see ``EigenAttention.bases``."""
    sums = {name: [torch.zeros(())] * shape.num_layers for name in "kqv"}

    def look(seen: Seen) -> None:
        heads = seen.k.shape[1]
        for name, x in (("k", seen.k), ("q", seen.q), ("v", seen.v)):
            rows = x.unflatten(1, (heads, -1)).transpose(0, 1).flatten(1, 2)  # [H, T * G, D]
            sums[name][seen.layer] = sums[name][seen.layer] + rows.transpose(1, 2) @ rows

    cases = sample_ids(world)
    with torch.inference_mode():
        for ids in cases:
            run(model, ids, usual, look)
    k, q, v = (torch.stack(sums[name]) for name in "kqv")
    return EigenAttention.bases(k, q, v), {"cases": len(cases)}


CALIBRATE = calibrate
