"""Semantic retrieval heads and the error of layers under eviction (CompressKV, arXiv:2508.02401, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..quality.tasks.base import World
from .base import asked, run

CASES, KEPT = 12, 0.25


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``query_heads`` [L, Hq]: attention that goes from where an answer is due to the whole planted statement.

    ``layers`` [L, 1]: how far (relative norm) a layer's attention output moves when each head keeps the quarter of its
    slots that the last queries attend most.
    """
    scores = torch.zeros(shape.num_layers, shape.num_q_heads)
    errors = torch.zeros(shape.num_layers)
    for case in [asked(world, 20_000 + seed) for seed in range(CASES)]:
        ids = [*case.prompt_ids, *case.answer_ids]
        due_at = range(len(case.prompt_ids) - 1, len(ids) - 1)
        span = slice(case.fact_start, case.value_start + len(case.answer_ids))

        def watch(layer: int, probs: Tensor, values: Tensor, due_at: range = due_at, span: slice = span) -> None:
            due = probs[:, due_at.start : due_at.stop]
            scores[layer] += due[..., span].sum((1, 2)) / len(due_at) / CASES
            mass = due.sum(1)
            few = mass.topk(max(1, int(KEPT * mass.shape[-1])), dim=-1).indices
            kept = torch.zeros_like(mass).scatter(1, few, 1.0)[:, None] * due
            spread = values.repeat_interleave(len(due) // len(values), 0)
            whole, part = due @ spread, (kept / kept.sum(-1, keepdim=True)) @ spread
            errors[layer] += float((whole - part).norm() / whole.norm()) / CASES

        with torch.inference_mode():
            run(model, ids, watch)
    heads = scores.view(shape.num_layers, shape.num_kv_heads, -1).amax(-1)
    return {"query_heads": scores, "heads": heads, "layers": errors[:, None]}, {"cases": CASES, "kept": KEPT}


CALIBRATE = calibrate
