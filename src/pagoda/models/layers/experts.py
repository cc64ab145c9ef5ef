"""A mixture's experts in a weight format: one call for all in the kernels' panels, else one matrix after another."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pagoda.kernels import ops
from pagoda.weights.expert_cache import CachedExperts
from pagoda.weights.packed import ExpertStack, PanelMatrix


def in_panels(stack: ExpertStack) -> bool:
    """Whether a kernel multiplies all experts of the stack in one call."""
    return all(isinstance(expert, PanelMatrix) for expert in stack.experts)


def _by_expert(topk_ids: Tensor, topk_weights: Tensor, num_experts: int) -> tuple[list[int], Tensor, Tensor]:
    """How many rows each expert gets; the rows' tokens ``[T * k]`` and weights ``[T * k, 1]``, by expert, token."""
    chosen = topk_ids.reshape(-1)
    order = chosen.argsort(stable=True)
    counts: list[int] = torch.bincount(chosen, minlength=num_experts).tolist()
    return counts, order // topk_ids.shape[1], topk_weights.reshape(-1).index_select(0, order)[:, None]


def _grouped(x: Tensor, counts: list[int], stack: ExpertStack, biases: Tensor | None) -> Tensor:
    """Rows of x, sorted by expert, through their experts: those of one format in one call."""
    alike = stack.by_format()
    if len(alike) == 1:
        return _grouped_alike(x, counts, list(range(len(counts))), stack, biases)
    rows = torch.arange(x.shape[0]).split(counts)
    out = x.new_empty(x.shape[0], stack.matrix_shape[0])
    for numbers in alike:
        here = torch.cat([rows[expert] for expert in numbers])
        if len(here):
            part = _grouped_alike(x.index_select(0, here), [counts[e] for e in numbers], numbers, stack, biases)
            out.index_copy_(0, here, part)
    return out


def _grouped_alike(
    x: Tensor, counts: list[int], numbers: list[int], stack: ExpertStack, biases: Tensor | None
) -> Tensor:
    matrices = [stack[expert].packed for expert in numbers]
    rows = None if biases is None else [biases[expert] for expert in numbers]
    return ops.grouped_linear(x, counts, matrices, rows, dynamic=stack[numbers[0]].format.dynamic)


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
    out = torch.zeros_like(x)
    counts, tokens, weights = _by_expert(topk_ids, topk_weights, gate_up.shape[0])
    if in_panels(gate_up) and in_panels(down):
        inner = _grouped(x.index_select(0, tokens), counts, gate_up, gate_up_b)
        gate, up = inner.chunk(2, dim=-1)
        inner = ops.gated_activation(gate, up, kind, alpha=alpha, limit=limit)
        result = (_grouped(inner, counts, down, down_b) * weights).to(x.dtype)
        # An expert at a time, as in the loop below: over all rows at once torch adds in float32 and rounds at the end.
        used = [count for count in counts if count]
        for rows, part in zip(tokens.split(used), result.split(used), strict=True):
            out.index_add_(0, rows, part)
        return out
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


def cached_dispatch(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    experts: CachedExperts,
    *,
    kind: str,
    alpha: float,
    limit: float,
    gate_up_b: Tensor | None = None,
    down_b: Tensor | None = None,
) -> Tensor:
    """As ``packed_dispatch``, to the last bit: experts are computed as they come, and added in the order of numbers."""
    out = torch.zeros_like(x)
    counts, tokens, weights = _by_expert(topk_ids, topk_weights, experts.shape[0])
    starts = [0, *itertools.accumulate(counts)]
    results: dict[int, Tensor] = {}
    for expert, (gate_up, down) in experts.cache.use(experts.layer, [e for e, count in enumerate(counts) if count]):
        part = slice(starts[expert], starts[expert + 1])
        bias = None if gate_up_b is None else gate_up_b[expert]
        gate, up = gate_up.linear(x.index_select(0, tokens[part]), bias).chunk(2, dim=-1)
        inner = ops.gated_activation(gate, up, kind, alpha=alpha, limit=limit)
        result = down.linear(inner, None if down_b is None else down_b[expert]) * weights[part]
        results[expert] = result.to(x.dtype)
        del gate_up, down  # their memory is the cache's again
    for expert in sorted(results):
        out.index_add_(0, tokens[starts[expert] : starts[expert + 1]], results[expert])
    return out
