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


def router_logits(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, exact: bool = False, isa: str = ""
) -> Tensor:
    """As `ops.router_logits`; ``isa`` fixes the instruction set (for tests)."""
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    logits = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    _cpu.router_logits(
        x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), DTYPES[x.dtype], *x.shape,
        weight.shape[0], exact, logits.data_ptr(), torch.get_num_threads(), isa,
    )  # fmt: skip
    return logits


def route(
    logits: Tensor, correction: Tensor | None = None, *, dtype: torch.dtype, kind: str, top_k: int,
    normalize: bool = False, scaling: float = 1.0, num_groups: int = 1, topk_group: int = 1, isa: str = "",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `ops.route`."""
    tokens, num_experts = logits.shape
    assert 0 < top_k <= num_experts, f"{top_k} of {num_experts}"
    room = logits.clone(memory_format=torch.contiguous_format)
    correction = None if correction is None else correction.float().contiguous()
    ids, weights = torch.empty(tokens, top_k, dtype=torch.int64), torch.empty(tokens, top_k, dtype=torch.float32)
    _cpu.route(
        room.data_ptr(), 0 if correction is None else correction.data_ptr(), tokens, DTYPES[dtype], ROUTERS[kind],
        num_experts, top_k, normalize, scaling, num_groups, topk_group, ids.data_ptr(), weights.data_ptr(),
        torch.get_num_threads(), isa,
    )  # fmt: skip
    return ids, weights


def sigmoid_gate(logits: Tensor, y: Tensor, isa: str = "") -> Tensor:
    """As `ops.sigmoid_gate`."""
    logits, y = logits.contiguous(), y.clone(memory_format=torch.contiguous_format)
    _cpu.gate(y.data_ptr(), logits.data_ptr(), *y.shape, DTYPES[y.dtype], torch.get_num_threads(), isa)
    return y


dispatch.register("router_logits", "cpu", router_logits, Features(CPU, WIDE, same_dtype=True))
dispatch.register("route", "cpu", route, Features(CPU, frozenset({torch.float32}), frozenset(KINDS)))
dispatch.register("sigmoid_gate", "cpu", sigmoid_gate, Features(CPU, WIDE))
