"""Experts in panels, all in one call, against the same experts one after the other."""

import pytest
import torch

from pagoda.models.layers import experts
from pagoda.models.layers.experts import packed_dispatch
from pagoda.weights.filling import pack_matrix
from pagoda.weights.packed import ExpertStack
from pagoda.weights.quantization import parse_format


@pytest.mark.parametrize("text", ["bf16", "w8a8", "int4(group=32)", "w4a8(group=32)"])
@pytest.mark.parametrize("tokens", [1, 37])
def test_grouped_experts_have_the_bits_of_the_loop(text, tokens, monkeypatch) -> None:
    num, hidden, inner, top_k = 6, 64, 48, 3
    generator = torch.Generator().manual_seed(1)
    stacks = []
    for rows, cols in ((2 * inner, hidden), (hidden, inner)):
        stack = ExpertStack(num, rows, cols)
        for e in range(num):
            weight = torch.randn(rows, cols, generator=generator) * cols**-0.5
            stack.experts[e] = pack_matrix(parse_format(text), weight.bfloat16(), torch.bfloat16)
        stacks.append(stack)
    x = torch.randn(tokens, hidden, generator=generator).bfloat16()
    ids = torch.stack([torch.randperm(num, generator=generator)[:top_k] for _ in range(tokens)])
    weights = torch.rand(tokens, top_k, generator=generator).bfloat16()
    options = {
        "kind": "silu", "alpha": 1.702, "limit": 7.0,
        "gate_up_b": torch.randn(num, 2 * inner, generator=generator).bfloat16(),
        "down_b": torch.randn(num, hidden, generator=generator).bfloat16(),
    }  # fmt: skip
    assert experts.in_panels(stacks[0])
    together = packed_dispatch(x, ids, weights, *stacks, **options)
    monkeypatch.setattr(experts, "in_panels", lambda stack: False)
    assert torch.equal(together, packed_dispatch(x, ids, weights, *stacks, **options))
