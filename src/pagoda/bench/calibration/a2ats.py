"""Codebooks of unrotated keys in the metric of the model's queries (A2ATS, arXiv:2502.12665)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kv.policies._rotary import turn
from ...kv.policies.a2ats import nearest
from ..quality.tasks.base import World
from ._rotary import frequencies
from .base import Seen, asked, run, usual

CASES, CODES, ROUNDS, SAMPLES = 24, 128, 12, 8192


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``codes`` [L, H, 128, D], ``metric`` [L, H, D, D] (Cholesky factor of the queries' second moments), ``freq``
    [L, 1, D / 2]: how far a pair of channels turns with each position.

    Raises ConfigError for models whose keys are not rotated whole, first half with second.
    """
    freq = frequencies(model, world.length, "a2ats", "clusterkv, which clusters keys as they are")
    width = 2 * freq.shape[-1]
    keys: list[list[Tensor]] = [[] for _ in range(shape.num_layers)]
    moments = torch.zeros(shape.num_layers, shape.num_kv_heads, width, width)

    def look(seen: Seen) -> None:
        at = torch.arange(len(seen.k))
        keys[seen.layer].append(turn(seen.k.transpose(0, 1), -at, freq[seen.layer]))
        queries = turn(seen.q.transpose(0, 1), -at, freq[seen.layer]).view(shape.num_kv_heads, -1, width)
        moments[seen.layer] += queries.transpose(1, 2) @ queries

    for seed, case in enumerate([asked(world, 60_000 + seed) for seed in range(CASES)]):
        ids = [*case.prompt_ids, *case.answer_ids] if seed % 2 else world.running_text(seed, world.length)
        with torch.inference_mode():
            run(model, ids, usual, look)
    found = [_codebook(torch.cat(mine, 1), moments[layer]) for layer, mine in enumerate(keys)]
    codes, metric, errors = (torch.stack(list(part)) for part in zip(*found, strict=True))
    return {"codes": codes, "metric": metric, "freq": freq}, {"cases": CASES, "error": round(float(errors.mean()), 4)}


def _codebook(keys: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From unrotated keys [H, N, D]: codes, metric, and the share of the keys' (metric) norm that is lost."""
    mean = moments.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    metric = torch.linalg.cholesky(moments / mean + 0.01 * torch.eye(keys.shape[-1]))
    keys = keys[:, :: max(1, keys.shape[1] // SAMPLES)]
    start = torch.linspace(0, keys.shape[1] - 1, CODES).round().long()
    codes = keys[:, start].clone()
    learned = {"codes": codes, "metric": metric}
    for _ in range(ROUNDS):
        mine = nearest(keys, learned)
        sums = torch.zeros_like(codes).scatter_add(1, mine[..., None].expand(keys.shape), keys)
        counts = torch.zeros(codes.shape[:2]).scatter_add(1, mine, torch.ones(mine.shape))[..., None]
        learned["codes"] = codes = torch.where(counts > 0, sums / counts.clamp(min=1.0), codes)
    mine = nearest(keys, learned)
    lost = (keys - codes.gather(1, mine[..., None].expand(keys.shape))) @ metric
    return codes, metric, lost.square().sum() / (keys @ metric).square().sum()


CALIBRATE = calibrate
