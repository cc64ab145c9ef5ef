"""A mixture's experts in a weight format: the plain way of ``ops.moe_dispatch``, one packed matrix after another."""

from __future__ import annotations

import torch
from torch import Tensor

from pagoda.kernels import ops
from pagoda.weights.packed import ExpertStack


def packed_dispatch(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    gate_up: ExpertStack,
    down: ExpertStack,
    *,
    kind: str,
    alpha: float,
    limit: float,
    gate_up_b: Tensor | None = None,
    down_b: Tensor | None = None,
) -> Tensor:
    """As ``ops.moe_dispatch`` (shapes stand there): experts in the order of their numbers, only the chosen are read."""
    out, top_k = torch.zeros_like(x), topk_ids.shape[1]
    order = topk_ids.reshape(-1).argsort(stable=True)  # by expert, then by token
    counts = torch.bincount(topk_ids.reshape(-1), minlength=gate_up.shape[0]).tolist()
    tokens, weights = order // top_k, topk_weights.reshape(-1).index_select(0, order)[:, None]
    start = 0
    for expert, count in enumerate(counts):
        if count == 0:
            continue
        part = slice(start, start + count)
        start += count
        inner = gate_up[expert].linear(
            x.index_select(0, tokens[part]), None if gate_up_b is None else gate_up_b[expert]
        )
        gate, up = inner.chunk(2, dim=-1)
        inner = ops.gated_activation(gate, up, kind, alpha=alpha, limit=limit)
        result = down[expert].linear(inner, None if down_b is None else down_b[expert]) * weights[part]
        out.index_add_(0, tokens[part], result.to(x.dtype))
    return out
