"""Echo and induction scores: random tokens, said several times over (RazorAttention, arXiv:2407.15891, section 3.2)."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from ..quality.tasks.base import World
from .base import run

TIMES = 4


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``heads`` [L, H]: the larger, over the group's query heads, of echo (attention to the same token before) plus
    induction (attention to the token after it).
    """
    period = max(16, world.length // TIMES)
    rng = random.Random(11)
    text = [rng.randrange(shape.vocab_size) for _ in range(period)]
    scores = torch.zeros(shape.num_layers, shape.num_q_heads)

    def watch(layer: int, probs: Tensor, values: Tensor) -> None:
        rows = torch.arange(period, probs.shape[1])
        for back in range(1, TIMES):
            mine = rows[rows >= back * period]
            scores[layer] += probs[:, mine, mine - back * period].sum(-1) / len(rows)
            scores[layer] += probs[:, mine, mine - back * period + 1].sum(-1) / len(rows)

    with torch.inference_mode():
        run(model, text * TIMES, watch)
    heads = scores.view(shape.num_layers, shape.num_kv_heads, -1).amax(-1)
    return {"heads": heads, "query_heads": scores}, {"period": period, "times": TIMES}


CALIBRATE = calibrate
