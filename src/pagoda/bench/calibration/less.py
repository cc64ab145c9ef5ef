"""The kernels of LESS (arXiv:2402.09398): what heavy hitters leave out of a head's output, from a few features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...kv.policies.less import MOST
from ..quality.tasks.base import World
from .base import Seen, run, sample_ids, usual

CASES, STEPS, RATE, FEATURES, KEPT = 12, 240, 1e-2, 16, 0.25
NONE = -15.0  # a bias that leaves nothing of a feature: for layers that kernels do not help


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``q_map`` [L, Hq, Dk, R], ``q_bias`` [L, Hq, R]; ``k_map`` [L, H, Dk, R], ``k_bias`` [L, H, R].

    Trained layer by layer to restore the output of attention where only the ``KEPT`` share is left, as H2O leaves it; a
    layer that this does not help, on texts that it was not trained on, gets none. The notes have what is lost of the
    output's square, without the kernels and with them.
    """
    seen: list[list[Seen]] = [[] for _ in range(shape.num_layers)]
    for ids in sample_ids(world, CASES):
        with torch.inference_mode():
            run(model, ids, usual, lambda one: seen[one.layer].append(one))
    torch.manual_seed(11)
    found = [_train(cases) for cases in seen]
    names = ("q_map", "q_bias", "k_map", "k_bias")
    tensors = {name: torch.stack([weights[i] for weights, _, _ in found]) for i, name in enumerate(names)}
    lost = {"without": [round(x, 4) for _, x, _ in found], "with": [round(x, 4) for _, _, x in found]}
    return tensors, {"cases": CASES, "steps": STEPS, "lost": lost}


def _train(cases: list[Seen]) -> tuple[list[Tensor], float, float]:
    first = cases[0]
    dim, num_q, num_k = first.q.shape[-1], first.q.shape[1], first.k.shape[1]
    weights = [0.05 * torch.randn(num, dim, FEATURES) for num in (num_q, num_k)]
    biases = [torch.full((num, FEATURES), -1.0) for num in (num_q, num_k)]
    parameters = [weights[0], biases[0], weights[1], biases[1]]
    for one in parameters:
        one.requires_grad_()
    shown = [_Case(one) for one in cases]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    with torch.no_grad():
        before = sum(float(case.loss(None)) for case in shown[-2:]) / 2
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = shown[step % (len(shown) - 2)].loss(parameters)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        after = sum(float(case.loss(parameters)) for case in shown[-2:]) / 2  # texts that it was not trained on
    found = [one.detach() for one in parameters]
    if after < before:
        return found, before, after
    return [found[0], torch.full_like(found[1], NONE), found[2], torch.full_like(found[3], NONE)], before, before


class _Case:
    """One text in one layer, after an eviction of the kind that H2O makes."""

    def __init__(self, seen: Seen) -> None:
        heads = seen.k.shape[1]
        self.q, self.k, self.v = (
            x.float().clone().transpose(0, 1) for x in (seen.q, seen.k, seen.v if seen.v.shape[-1] else seen.k)
        )  # latent KV: the row has the values in it
        self.q = self.q.unflatten(0, (heads, -1))  # [H, G, T, D]
        logits = self.q @ self.k[:, None].transpose(2, 3) * seen.scale
        at = torch.arange(logits.shape[-1])
        causal = at <= at[:, None]
        probs = logits.masked_fill(~causal, -math.inf).softmax(-1)
        self.full = probs @ self.v[:, None]
        half = max(1, int(KEPT * len(at)) // 2)
        heavy = torch.zeros(heads, len(at), dtype=torch.bool)
        heavy.scatter_(1, probs.sum((1, 2)).topk(half, dim=1).indices, True)
        kept = causal & (heavy[:, None] | (at > at[:, None] - half))  # [H, T, T]
        self.gone = (causal & ~kept)[:, None]
        logits = logits.masked_fill(~kept[:, None], -math.inf)
        self.most = logits.amax(-1, keepdim=True)
        self.held = (logits - self.most).exp()

    def loss(self, parameters: list[Tensor] | None) -> Tensor:
        """Share of the output's square that is lost; None: without a residual."""
        weights = self.held
        if parameters is not None:
            q_map, q_bias, k_map, k_bias = parameters
            group = self.q.shape[:2]
            asked = self.q @ q_map.unflatten(0, group) + q_bias.unflatten(0, group)[:, :, None]
            asked = (asked.clamp(max=MOST) - self.most).clamp(max=MOST).exp()
            told = (self.k @ k_map + k_bias[:, None]).clamp(max=MOST).exp()
            weights = weights + (asked @ told[:, None].transpose(2, 3)) * self.gone
        out = (weights / weights.sum(-1, keepdim=True)) @ self.v[:, None]
        return (out - self.full).square().sum() / self.full.square().sum()


CALIBRATE = calibrate
