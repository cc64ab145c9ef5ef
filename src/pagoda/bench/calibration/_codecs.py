"""What codecs of whole pages learn from: the keys and values that a model has of running text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...kv.policies import POLICIES
from ..quality.tasks.base import World
from .base import Seen, run, usual

TEXTS = 4


def calibrator(name: str) -> Callable[[Any, World, Any], tuple[dict[str, Tensor], dict[str, object]]]:
    """The calibration of a codec: its ``learn`` over ``TEXTS`` texts of the world's length."""

    def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
        codec: Any = POLICIES.get(name)
        k, v = samples(model, world)
        return codec.learn(k, v), {"tokens": k.shape[2]}

    return calibrate


def samples(model: Any, world: World) -> tuple[Tensor, Tensor]:
    """float32 ``[L, H, N, k_dim]`` and ``[L, H, N, v_dim]``, rotary positions applied."""
    found: dict[int, list[Seen]] = {}

    def look(seen: Seen) -> None:
        found.setdefault(seen.layer, []).append(seen)

    for seed in range(TEXTS):
        ids = [*world.head, *world.running_text(40_000 + seed, world.length)][: world.length]
        with torch.inference_mode():
            run(model, ids, usual, look)
    k, v = (
        torch.stack([torch.cat([getattr(s, name) for s in found[layer]]) for layer in sorted(found)]).transpose(1, 2)
        for name in ("k", "v")
    )
    return k, v
