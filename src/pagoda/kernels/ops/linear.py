"""Matrix product with a weight stored row by output, as checkpoints have it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Make, cross
from ..dispatch import Needs, Op

# Up to here a product is bound by reading the weights once; beyond, by arithmetic. Implementations may differ.
FEW_TOKENS = 8


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x ``[..., in]``, weight ``[out, in]``, bias ``[out]`` or None -> ``[..., out]``."""
    few = x.shape[:-1].numel() <= FEW_TOKENS
    key = (x.dtype, x.device.type, weight.dtype, bias is None, few)
    run = _OP.chosen.get(key) or _OP.resolve(key, _needs(x, weight, bias, few))
    out: Tensor = run(x, weight, bias)
    return out


def _needs(x: Tensor, weight: Tensor, bias: Tensor | None, few: bool) -> Needs:
    options = {"bias": bias is not None, "few_tokens": few, "many_tokens": not few}
    return Needs(x.device.type, (x.dtype, weight.dtype), options=frozenset(name for name, on in options.items() if on))


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    # Measured for one token in bfloat16 (torch 2.13, one busy Zen 4 core, us): [4864, 896] F.linear 917, mv 1418,
    # mm(weight, x.T) 907, bmm over 8 parts 1430; [151936, 896] F.linear 29400, mv 46100, mm 33100, bmm 63200. Nothing
    # in torch reads weights faster (9 GB/s there, 20-29 GB/s on an idle machine) without a second, packed copy.
    return torch.nn.functional.linear(x, weight, bias)


_OP = Op("linear", reference)
TOLERANCE = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (1.6e-2, 2e-2), torch.float16: (4e-3, 4e-3)}


def _case(make: Make, tokens: int, inputs: int, outputs: int, bias: bool = False) -> dict[str, object]:
    weight = make.normal(outputs, inputs, scale=inputs**-0.5)
    return {"x": make.normal(tokens, inputs), "weight": weight, "bias": make.normal(outputs) if bias else None}


CASES = cross(
    "linear", _case,
    {"tokens": 1, "inputs": 64, "outputs": 33}, {"tokens": 1, "inputs": 65, "outputs": 32, "bias": True},
    {"tokens": 8, "inputs": 96, "outputs": 64}, {"tokens": 33, "inputs": 64, "outputs": 80, "bias": True},
    {"tokens": 3, "inputs": 896, "outputs": 301}, {"tokens": 5, "inputs": 100, "outputs": 64, "bias": True},
    {"tokens": 0, "inputs": 64, "outputs": 32},
)  # fmt: skip
