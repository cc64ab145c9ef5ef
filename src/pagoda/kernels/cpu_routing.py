"""The C++ bodies of routers, and of what counts as they say."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, DTYPES, _cpu
from .dispatch import Features
from .ops.route import KINDS

ROUTERS = {name: index for index, name in enumerate(KINDS)}  # csrc/routing.hpp numbers them alike
WIDE = frozenset({torch.float32, torch.bfloat16})


def route(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, correction: Tensor | None = None, *, kind: str, top_k: int,
    normalize: bool = False, scaling: float = 1.0, num_groups: int = 1, topk_group: int = 1, isa: str = "",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `ops.route`; ``isa`` fixes the instruction set (for tests)."""
    x, weight = x.contiguous(), weight.contiguous()
    bias, correction = (None if t is None else t.contiguous() for t in (bias, correction))
    assert correction is None or correction.dtype == torch.float32
    tokens, num_experts = x.shape[0], weight.shape[0]
    assert 0 < top_k <= num_experts, f"{top_k} of {num_experts}"
    logits = torch.empty(tokens, num_experts, dtype=torch.float32)
    ids, weights = torch.empty(tokens, top_k, dtype=torch.int64), torch.empty(tokens, top_k, dtype=torch.float32)
    _cpu.route(
        x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if correction is None else correction.data_ptr(), DTYPES[x.dtype], *x.shape, ROUTERS[kind], num_experts,
        top_k, normalize, scaling, num_groups, topk_group, logits.data_ptr(), ids.data_ptr(), weights.data_ptr(),
        torch.get_num_threads(), isa,
    )  # fmt: skip
    return ids, weights


def sigmoid_gate(x: Tensor, weight: Tensor, y: Tensor, isa: str = "") -> Tensor:
    """As `ops.sigmoid_gate`."""
    x, weight, y = x.contiguous(), weight.contiguous(), y.clone(memory_format=torch.contiguous_format)
    logits = torch.empty(x.shape[0], dtype=torch.float32)
    _cpu.gate(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), DTYPES[x.dtype], *x.shape, y.shape[1], logits.data_ptr(),
        torch.get_num_threads(), isa,
    )  # fmt: skip
    return y


dispatch.register("route", "cpu", route, Features(CPU, WIDE, frozenset(KINDS), same_dtype=True))
dispatch.register("sigmoid_gate", "cpu", sigmoid_gate, Features(CPU, WIDE, same_dtype=True))
