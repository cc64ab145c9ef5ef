"""The C++ bodies of linear layers."""

from __future__ import annotations

import torch
from torch import Tensor

from . import dispatch
from ._extension import CPU, _cpu, best_isa
from .dispatch import Features


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, isa: str = "") -> Tensor:
    """As `ops.linear` for bfloat16 and up to eight tokens; ``isa`` fixes the instruction set (for tests)."""
    if weight.stride(1) != 1:  # a transposed view: torch's GEMM takes it as it is
        return torch.nn.functional.linear(x, weight, bias)
    tokens = x.reshape(-1, x.shape[-1]).contiguous()
    bias = None if bias is None else bias.contiguous()
    out = torch.empty(tokens.shape[0], weight.shape[0], dtype=x.dtype)
    _cpu.linear(
        tokens.data_ptr(), weight.data_ptr(), weight.stride(0), 0 if bias is None else bias.data_ptr(), out.data_ptr(),
        tokens.shape[0], weight.shape[1], weight.shape[0], torch.get_num_threads(), isa,
    )  # fmt: skip
    return out.view(*x.shape[:-1], weight.shape[0])


# Against torch's own on one busy Zen 4 core, us for 1 / 2 / 4 / 8 tokens:
#   [4864, 896]    735 /   731 /   864 /   956    torch   957 /   963 /  1031 /  1199
#   [896, 4864]    415 /   478 /   611 /   838    torch   811 /   741 /   811 /   977
#   [151936, 896]  23515 / 23862 / 27903 / 31052  torch 30062 / 29983 / 33491 / 37528
# With AVX2 alone it was slower than torch, so there it is not offered.
if best_isa() not in ("base", "avx2"):
    dispatch.register(
        "linear", "cpu", linear,
        Features(CPU, frozenset({torch.bfloat16}), frozenset({"bias", "few_tokens"}), same_dtype=True),
    )  # fmt: skip
