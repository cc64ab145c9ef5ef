"""Roles of heads, trained as stochastic gates on recall (LycheeDecode, arXiv:2602.04541)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..quality.tasks.base import World
from .base import asked, run, usual

STEPS, CASES, RATE, PENALTY = 80, 8, 0.1, 0.05
KEPT = 0.1  # share of the tokens that a sparse head is left with
LOW, HIGH = -0.1, 1.1  # the distribution is stretched to here and clipped, so that gates can be 0 and 1


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``heads`` [L, H]: probability that the head's gate is above a half; ``ranks`` [L, H]: share of the heads above
    the first layer with a higher one (-1 in the first).

    Where answers are due a head's output is ``gate * full + (1 - gate) * sparse``, with the tokens that the head of
    that number below chose. Gates are drawn from a hard Kumaraswamy distribution, whose two parameters a head are
    trained to leave the hidden states as they were, under a penalty on the gates that are not 0.
    """
    cases = []
    for case in [asked(world, 50_000 + seed) for seed in range(CASES)]:
        ids = [*case.prompt_ids, *case.answer_ids]
        with torch.no_grad():
            cases.append((ids, len(case.answer_ids) + 1, run(model, ids, usual)))
    generator = torch.Generator().manual_seed(9)
    logs = torch.zeros(2, shape.num_layers, shape.num_kv_heads, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=RATE)
    loss = torch.zeros(())
    for step in range(STEPS):
        ids, due, wanted = cases[step % CASES]
        optimizer.zero_grad()
        a, b = logs.exp().clamp(0.05, 20.0)
        drawn = torch.rand(a.shape, generator=generator).clamp(0.01, 0.99)
        gates = (LOW + (HIGH - LOW) * (1 - (1 - drawn) ** (1 / b)) ** (1 / a)).clamp(0.0, 1.0)
        hidden = run(model, ids, _Hybrid(gates, due))
        loss = (hidden[-due:] - wanted[-due:]).square().mean() / wanted[-due:].square().mean()
        (loss + PENALTY * _above(0.0, a, b)[1:].mean()).backward()
        optimizer.step()
    with torch.no_grad():
        heads = _above(0.5, *logs.exp().clamp(0.05, 20.0))
    return {"heads": heads, "ranks": ranks(heads)}, {"steps": STEPS, "last_loss": round(float(loss.detach()), 5)}


def _above(value: float, a: Tensor, b: Tensor) -> Tensor:
    """Probability that a gate is above ``value``."""
    at = (value - LOW) / (HIGH - LOW)
    return (1 - at**a) ** b


def ranks(heads: Tensor) -> Tensor:
    """float32 [L, H], see ``calibrate``."""
    above = heads[1:].flatten()
    order = above.argsort(descending=True, stable=True)
    place = torch.empty_like(above).scatter_(0, order, torch.arange(len(above)) / max(1, len(above)))
    return torch.cat([-torch.ones_like(heads[:1]), place.view(heads[1:].shape)])


class _Hybrid:
    """The watch of one run: what each head handed on, layer after layer."""

    def __init__(self, gates: Tensor, due: int) -> None:
        self._gates, self._due = gates, due
        self._chosen = torch.empty(0)

    def __call__(self, layer: int, probs: Tensor, values: Tensor) -> Tensor:
        heads, group = len(values), len(probs) // len(values)
        asked = probs[:, -self._due :]
        own = asked.detach().view(heads, group, self._due, -1).sum(1)
        best = own.topk(max(1, int(KEPT * own.shape[-1])), dim=-1).indices
        mine = torch.zeros_like(own).scatter(-1, best, 1.0)
        spread = values.repeat_interleave(group, 0)
        full = probs @ spread
        if layer == 0:
            self._chosen = mine
            return full
        below = self._chosen.repeat_interleave(group, 0) * asked
        sparse = (below / below.sum(-1, keepdim=True).clamp(min=1e-9)) @ spread
        gate = self._gates[layer].repeat_interleave(group)[:, None, None]
        mixed = gate * full[:, -self._due :] + (1 - gate) * sparse
        retrieves = (self._gates[layer].detach() > 0.5)[:, None, None]
        self._chosen = torch.where(retrieves, mine, self._chosen)
        return torch.cat([full[:, : -self._due], mixed], 1)


CALIBRATE = calibrate
