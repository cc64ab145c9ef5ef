"""Newest queries go to the sequences that remember them while the step's program runs: the bits of collecting them
layer by layer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pagoda.kv.view import StepView

from .watched import run_watched

KVS = [
    "hashevict(budget=30, every=5)", "scissorhands(budget=40, window=16, every=8)", "exact",
    "scope(budget=40, every=8)", "snapkv(budget=30)+quest(pages=2)",
]  # fmt: skip


def run(llm: Any, kvs: list[str]) -> tuple[dict[str, list[int]], list[torch.Tensor], int]:
    """Tokens of each, the rings of all after every step, and how many steps filled them by themselves."""
    rings, num_steps = list[torch.Tensor](), 0

    def look(result: Any) -> None:
        nonlocal num_steps
        num_steps += result.tap is not None and result.tap.in_rings
        for piece in result.pieces:
            ring = piece.sequence.policy_state._ring
            rings.append(torch.empty(0) if ring is None else ring.clone())

    tokens = run_watched(llm, kvs, look)
    return tokens, rings, num_steps


@pytest.mark.parametrize("kvs", [KVS[:2], KVS, [f"{kv}+int8" for kv in KVS[:2]]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_program_notes_has_the_bits_of_what_each_layer_shows(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kvs: list[str], dtype: str
) -> None:
    """Prompts in chunks, decode steps, acts, neighbours that nobody watches."""
    tokens, rings, num_steps = run(make_llm(max_num_batched_tokens=40, dtype=dtype), kvs)
    assert len(tokens) == len(kvs)
    assert sum(ring.numel() > 0 for ring in rings) > 20
    assert all(ring.dtype == getattr(torch, dtype) for ring in rings if ring.numel())
    arrays = StepView.arrays
    monkeypatch.setattr(StepView, "arrays", lambda view: None if view._tap is not None else arrays(view))
    apart, apart_rings, none = run(make_llm(max_num_batched_tokens=40, dtype=dtype), kvs)
    assert none == 0
    assert num_steps > 20
    assert tokens == apart
    assert len(rings) == len(apart_rings)
    assert all(torch.equal(one, other) for one, other in zip(rings, apart_rings, strict=True))
