"""The sparse feed-forward layer: routers, experts, shared expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagoda.kernels import ops
from pagoda.weights.expert_cache import CachedExperts

from ..spec import MoESpec, RouterSpec
from .experts import cached_dispatch, packed_dispatch
from .linear import Linear, Weights
from .mlp import MLP


def route(router: RouterSpec, logits: Tensor, correction: Tensor | None) -> tuple[Tensor, Tensor]:
    """Experts and weights of every token: logits ``[T, E]`` -> ids ``[T, k]`` int64, weights ``[T, k]``."""
    if router.kind == "topk_softmax":
        top, ids = logits.topk(router.top_k, dim=-1)
        return ids, top.softmax(-1)
    if router.kind == "sigmoid":
        return _grouped_sigmoid(router, logits, correction)
    weights, ids = logits.float().softmax(-1).topk(router.top_k, dim=-1)
    if router.normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids, weights.to(logits.dtype)


def _grouped_sigmoid(router: RouterSpec, logits: Tensor, correction: Tensor | None) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3 (https://arxiv.org/abs/2412.19437, 2.1.2): the bias steers the choice, never the weights.

    A group's score is the sum of its two best experts; experts outside the best groups cannot be chosen.
    """
    tokens, num_experts = logits.shape
    scores = logits.float().sigmoid()
    choice = scores if correction is None else scores + correction
    groups = choice.view(tokens, router.num_groups, num_experts // router.num_groups)
    best = groups.topk(2, dim=-1).values.sum(-1).topk(router.topk_group, dim=-1).indices
    open_groups = torch.zeros(tokens, router.num_groups, dtype=torch.bool, device=logits.device)
    open_groups.scatter_(1, best, True)
    allowed = groups.masked_fill(~open_groups[..., None], float("-inf")).view(tokens, num_experts)
    ids = allowed.topk(router.top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    if router.normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * router.scaling


class MoE:
    """Router, experts, and perhaps a shared expert that every token passes."""

    def __init__(self, spec: MoESpec, weights: Weights, name: str) -> None:
        self.spec = spec
        self.router = Linear(weights, f"{name}router")
        self.correction = weights.get(f"{name}correction_bias")
        self.gate_up, self.down = weights[f"{name}gate_up"], weights[f"{name}experts_down"]
        biases = {"gate_up_b": weights.get(f"{name}gate_up_bias"), "down_b": weights.get(f"{name}experts_down_bias")}
        self.options: dict[str, Any] = {"kind": spec.act, "alpha": spec.alpha, "limit": spec.limit, **biases}
        self.shared = None if spec.shared is None else MLP(spec.shared, weights, f"{name}shared.")
        self.shared_router = Linear(weights, f"{name}shared_router") if spec.shared_gate else None

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, hidden]`` -> ``[T, hidden]``."""
        ids, weights = self.choose(x)
        if isinstance(self.gate_up, CachedExperts):
            out = cached_dispatch(x, ids, weights, self.gate_up, **self.options)
        elif isinstance(self.gate_up, Tensor):
            out = ops.moe_dispatch(x, ids, weights, self.gate_up, self.down, **self.options)
        else:
            out = packed_dispatch(x, ids, weights, self.gate_up, self.down, **self.options)
        if self.shared is None:
            return out
        shared = self.shared(x)
        if self.shared_router is not None:
            shared = self.shared_router(x).sigmoid() * shared
        return out + shared

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of every token of x ``[T, hidden]``, and what their answers count: ``[T, k]`` int64, ``[T, k]``."""
        return route(self.spec.router, self._logits(x), self.correction)

    def probable(self, x: Tensor) -> list[int]:
        """Experts that the router would ask for on x ``[T, hidden]``, those of most weight first."""
        ids, weights = self.choose(x)
        total = torch.zeros(self.spec.num_experts).index_add_(0, ids.flatten(), weights.flatten().float())
        order: list[int] = total.argsort(descending=True, stable=True).tolist()
        return order[: int(total.count_nonzero())]

    def _logits(self, x: Tensor) -> Tensor:
        """DeepSeek's router multiplies in float32 whatever the model's dtype: near-ties decide which experts run."""
        if self.spec.router.kind == "sigmoid":
            return ops.linear(x.float(), self.router.weight.float(), None)
        return self.router(x)
