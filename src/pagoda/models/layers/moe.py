"""The sparse feed-forward layer: routers, experts, shared expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagoda.kernels import ops
from pagoda.weights.expert_cache import CachedExperts

from ..spec import MoESpec
from .experts import cached_dispatch, packed_dispatch
from .linear import Linear, Weights
from .mlp import MLP


def _logits(router: Linear, x: Tensor, *, exact: bool = False) -> Tensor:
    """x ``[T, hidden]`` -> float32 ``[T, E]``, as `ops.router_logits`; checkpoints may have packed the router."""
    if isinstance(router.weight, Tensor):
        return ops.router_logits(x, router.weight, router.bias, exact=exact)
    return router(x.float() if exact else x).float()


class MoE:
    """Router, experts, and perhaps a shared expert that every token passes."""

    def __init__(self, spec: MoESpec, weights: Weights, name: str) -> None:
        self.spec = spec
        self.router = Linear(weights, f"{name}router")
        self.correction = weights.get(f"{name}correction_bias")
        self.gate_up, self.down = weights[f"{name}gate_up"], weights[f"{name}experts_down"]
        biases = {"gate_up_b": weights.get(f"{name}gate_up_bias"), "down_b": weights.get(f"{name}experts_down_bias")}
        router = spec.router
        self.exact = router.kind == "sigmoid"  # float32 whatever the model's dtype
        self.rule: dict[str, Any] = {
            "kind": router.kind, "top_k": router.top_k, "normalize": router.normalize, "scaling": router.scaling,
            "num_groups": router.num_groups, "topk_group": router.topk_group,
        }  # fmt: skip
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
            shared = ops.sigmoid_gate(_logits(self.shared_router, x), shared)
        return out + shared

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts of every token of x ``[T, hidden]``, and what their answers count: ``[T, k]`` int64, ``[T, k]``."""
        logits = _logits(self.router, x, exact=self.exact)
        return ops.route(logits, self.correction, dtype=x.dtype, **self.rule)

    def probable(self, x: Tensor) -> list[int]:
        """Experts that the router would ask for on x ``[T, hidden]``, those of most weight first."""
        ids, weights = self.choose(x)
        total = torch.zeros(self.spec.num_experts).index_add_(0, ids.flatten(), weights.flatten().float())
        order: list[int] = total.argsort(descending=True, stable=True).tolist()
        return order[: int(total.count_nonzero())]
