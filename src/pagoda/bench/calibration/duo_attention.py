"""Gates trained on synthetic recall: how much full attention each head needs (DuoAttention, arXiv:2410.10819, 2.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..quality.tasks.base import World
from .base import asked, run, usual

STEPS, CASES, RATE, PENALTY = 60, 8, 0.05, 0.05
SINKS = 4


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``heads`` [L, H] in 0 … 1: every head's output is ``gate * full + (1 - gate) * streaming``; gates start at 1 and
    are trained (Adam) to leave the hidden states where answers are due as they were, under an L1 penalty.
    """
    local = max(16, world.length // 8)
    cases = []
    for case in [asked(world, 30_000 + seed) for seed in range(CASES)]:
        ids = [*case.prompt_ids, *case.answer_ids]
        with torch.no_grad():
            cases.append((ids, len(case.answer_ids) + 1, run(model, ids, usual)))
    gates = torch.ones(shape.num_layers, shape.num_kv_heads, requires_grad=True)
    optimizer = torch.optim.Adam([gates], lr=RATE)
    loss = torch.zeros(())
    for step in range(STEPS):
        ids, due, wanted = cases[step % CASES]
        optimizer.zero_grad()
        hidden = run(model, ids, lambda *seen: _mixed(gates, local, *seen))
        loss = (hidden[-due:] - wanted[-due:]).square().mean() / wanted[-due:].square().mean()
        (loss + PENALTY * gates.abs().mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            gates.clamp_(0.0, 1.0)
    return {"heads": gates.detach()}, {"steps": STEPS, "local": local, "last_loss": round(float(loss.detach()), 5)}


def _mixed(gates: Tensor, local: int, layer: int, probs: Tensor, values: Tensor) -> Tensor:
    num = probs.shape[-1]
    at = torch.arange(num)
    near = (at[:, None] - at < local) | (at < SINKS)
    streaming = probs * near
    streaming = streaming / streaming.sum(-1, keepdim=True).clamp(min=1e-9)
    group = len(probs) // len(values)
    gate = gates[layer].repeat_interleave(group)[:, None, None]
    return (gate * probs + (1 - gate) * streaming) @ values.repeat_interleave(group, 0)


CALIBRATE = calibrate
