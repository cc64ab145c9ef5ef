"""Retaining heads, trained on what later queries made of each token (Locret, arXiv:2410.01805)."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from ...kv.policies.locret import features, judge
from ..quality.tasks._facts import told
from ..quality.tasks.base import World
from .base import Seen, run, usual

CASES, HIDDEN, STEPS, BATCH, RATE = 72, 48, 800, 6, 3e-3
SMOOTHING = 0.0025  # weight of the difference between neighbours' scores, as in the paper
STILL = 1e-4  # of a layer's mean spread: a feature that varies less says nothing (ternary layers have dead channels)
LOCAL = 32  # queries this near do not count in running text: the newest tokens stay anyway


def calibrate(model: Any, world: World, shape: Any) -> tuple[dict[str, Tensor], dict[str, object]]:
    """``w1`` [L, H * (Dk + Dv), hidden], ``b1``, ``w2`` [L, hidden, H], ``b2``: a network for each layer.

    Its aim is the largest product (before the softmax) of the key with a query that comes later: of the questions and
    answers where facts were told, of all that are ``LOCAL`` tokens away in running text. Texts begin anywhere in the
    model's range of positions, so that the networks know rotated keys of all of them.
    """
    shown, aims = _examples(model, world, shape)
    torch.manual_seed(7)
    weights, losses = [], []
    for layer in range(shape.num_layers):
        found, loss = _train([x[layer] for x in shown], [a[layer] for a in aims])
        weights.append(found)
        losses.append(loss)
    stacked = {name: torch.stack([w[name] for w in weights]) for name in weights[0]}
    return stacked, {"cases": CASES, "steps": STEPS, "last_loss": [round(loss, 4) for loss in losses]}


def _examples(model: Any, world: World, shape: Any) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """By case and layer: what a network sees [n, H * (Dk + Dv)], and what it should say [n, H]."""
    shown, aims, rng = [], [], random.Random(5)
    for seed in range(CASES):
        ids, asked = _asked_of_all(world, seed) if seed % 3 else (world.running_text(seed, world.length), 0)
        first = rng.randint(0, max(0, min(shape.max_position, 1 << 15) - len(ids)))
        views: list[Tensor] = []
        wanted: list[Tensor] = []

        def look(seen: Seen, views: list[Tensor] = views, wanted: list[Tensor] = wanted, asked: int = asked) -> None:
            views.append(features(seen.k, seen.v))
            wanted.append(_importance(seen, asked))

        with torch.inference_mode():
            run(model, ids, usual, look, first)
        shown.append([x.clone() for x in views])
        aims.append(wanted)
    return shown, aims


def _asked_of_all(world: World, seed: int) -> tuple[list[int], int]:
    """A text with facts and a question about each, with its answer; and where the questions begin."""
    count = 2 + seed % 4
    ids, facts = told(world, 40_000 + seed, count, reserve=28 * count)
    asked = len(ids)
    random.Random(seed).shuffle(facts)
    for fact in facts:
        ids += [*world.encode(fact.question), *world.encode(fact.statement)]
    return ids, asked


def _importance(seen: Seen, asked: int) -> Tensor:
    """float32 [T, H]; NaN for tokens that no query comes after."""
    num, heads = seen.k.shape[:2]
    queries = seen.q.view(num, heads, -1, seen.q.shape[-1]).permute(1, 2, 0, 3)  # [H, G, T, D]
    logits = (queries @ seen.k.permute(1, 2, 0)[:, None]).amax(1) * seen.scale  # [H, T queries, T keys]
    at = torch.arange(num)
    later = (at[:, None] >= at + (1 if asked else LOCAL)) & (at[:, None] >= asked)
    best = logits.masked_fill(~later, -torch.inf).amax(1)
    best[:, at >= (asked or num - LOCAL)] = torch.nan
    return best.T.clone()


def _train(shown: list[Tensor], aims: list[Tensor]) -> tuple[dict[str, Tensor], float]:
    every = torch.cat(shown)
    mean, spread = every.mean(0), every.std(0)
    spread[spread <= STILL * spread.mean()] = torch.inf  # divided by it they are 0, and so is their weight
    heads = aims[0].shape[1]
    base = torch.cat(aims).nanmean(0)
    w1 = torch.randn(every.shape[1], HIDDEN) / every.shape[1] ** 0.5
    w2 = torch.randn(HIDDEN, heads) / HIDDEN**0.5
    parts = {"w1": w1, "b1": torch.zeros(HIDDEN), "w2": w2, "b2": base.clone()}
    for part in parts.values():
        part.requires_grad_(True)
    optimizer = torch.optim.Adam(parts.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loss = torch.zeros(())
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = torch.zeros(())
        for index in range(step * BATCH, step * BATCH + BATCH):
            said = judge((shown[index % len(shown)] - mean) / spread, parts)
            aim = aims[index % len(aims)]
            known = ~aim.isnan()
            loss = loss + smooth_l1_loss(said[known], aim[known]) / BATCH
            loss = loss + SMOOTHING * said.diff(dim=0).square().mean() / BATCH
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # the networks are served on raw keys and values
        parts["b1"] -= (mean / spread) @ parts["w1"]
        parts["w1"] /= spread[:, None]
    return {name: part.detach() for name, part in parts.items()}, float(loss.detach())


CALIBRATE = calibrate
