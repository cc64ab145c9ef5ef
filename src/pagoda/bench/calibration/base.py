"""A model run with its attention written out: what heads look at, what they give back, and gradients through both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ..quality.recall import RecallCase
from ..quality.tasks.base import World
from ..quality.tasks.recall import planted

Watch = Callable[[int, Tensor, Tensor], Tensor | None]
"""Sees (layer, probabilities [Hq, T, T], values [Hkv, T, Dv]); returns the heads' output [Hq, T, Dv], or None for
the usual one."""


@dataclass(frozen=True)
class Seen:
    """What goes into one layer's cache and asks it: q ``[T, Hq, Dk]``, k ``[T, H, Dk]``, v ``[T, H, Dv]``, float32,
    rotary positions applied. Latent KV has no v of its own.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


class OpenView:
    """The KV view of one whole sequence without a cache. Everything is differentiable."""

    def __init__(self, watch: Watch, look: Callable[[Seen], None] | None = None) -> None:
        self._watch, self._look = watch, look

    def arrays(self) -> None:
        """No pages here: layers come one by one."""

    in_program = False

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int = 0, soft_cap: float = 0.0,
        sinks: Tensor | None = None, alibi_slopes: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As ``models.layers.step.KVView.attend``."""
        if self._look is not None:
            self._look(Seen(layer, q.float(), k.float(), v.float(), scale))
        return self._attend(layer, q, k, v, scale, soft_cap, sinks, window, alibi_slopes)

    def attend_latent(self, layer: int, q: Tensor, latent: Tensor, *, v_dim: int, scale: float) -> Tensor:
        """MLA: V is the first ``v_dim`` columns of the latent."""
        if self._look is not None:
            self._look(Seen(layer, q.float(), latent.float(), latent[..., :0].float(), scale))
        return self._attend(layer, q, latent, latent[..., :v_dim], scale, 0.0, None)

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, soft_cap: float, sinks: Tensor | None,
        window: int = 0, slopes: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        group = q.shape[1] // k.shape[1]
        keys, values = (x.transpose(0, 1).float() for x in (k, v))
        logits = q.transpose(0, 1).float() @ keys.repeat_interleave(group, 0).transpose(1, 2) * scale
        if soft_cap > 0:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        at = torch.arange(len(q))
        back = at[:, None] - at
        if slopes is not None:
            logits = logits - slopes.float()[:, None, None] * back
        hidden = (back < 0) | (back >= window) if window else back < 0
        logits = logits.masked_fill(hidden, -math.inf)
        probs = logits.softmax(-1)
        if sinks is not None:
            total = logits.logsumexp(-1, keepdim=True)
            probs = probs * torch.sigmoid(total - sinks.float()[:, None, None])
        out = self._watch(layer, probs, values)
        if out is None:
            out = probs @ values.repeat_interleave(group, 0)
        return out.transpose(0, 1).to(q.dtype)


def run(model: Any, ids: list[int], watch: Watch, look: Callable[[Seen], None] | None = None, first: int = 0) -> Tensor:
    """Hidden states float32 [T, hidden] of one sequence whose first token is at position ``first``."""
    tokens = torch.tensor(ids)
    hidden: Tensor = model.forward(tokens, torch.arange(first, first + len(ids)), OpenView(watch, look))
    return hidden.float()


def sample_ids(world: World, cases: int = 24) -> list[list[int]]:
    """Token ids of texts to look at: half of them running text, half with a fact and a question about it."""
    texts = []
    for seed in range(cases):
        case = asked(world, 70_000 + seed)
        texts.append([*case.prompt_ids, *case.answer_ids] if seed % 2 else world.running_text(seed, world.length))
    return texts


def asked(world: World, seed: int) -> RecallCase:
    """A fact near the beginning of a text, which is asked at its end. Raises ConfigError for a world whose texts are
    too short for it, so ask before there is much to lose.
    """
    try:
        return planted(world, seed, int(0.7 * world.length), 8)
    except ValueError as error:
        raise ConfigError(
            f"texts of {world.length} tokens cannot hold four facts and a question in this model's tokens; give a "
            "greater --length, 512 is enough for single bytes"
        ) from error


def usual(layer: int, probs: Tensor, values: Tensor) -> Tensor | None:
    """A watch that watches nothing."""
    return None
