"""What slots receive is added by the step's program while it runs: the bits of adding it afterwards, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda.kv.policies._stack import PolicyStack
from pagoda.kv.view import StepView
from pagoda.models.families import family

from .tiny import VOCAB, make_model
from .watched import run_watched

KVS = [
    "h2o(budget=40, every=8)", "scissorhands(budget=40, window=8, every=8)", "corm(budget=40, window=4, every=8)",
    "snapkv(budget=20, window=6)",
]  # fmt: skip


def run(llm: Any, kvs: list[str]) -> tuple[dict[str, list[int]], list[dict[str, torch.Tensor]], int]:
    """Tokens of each, what all remembered after every step, and how often a step added to it by itself."""
    states, num_added = list[dict[str, torch.Tensor]](), 0

    def look(result: Any) -> None:
        nonlocal num_added
        num_added += len(result.view.added)
        for piece in result.pieces:
            states.append({name: held.clone() for name, held in piece.sequence.policy_state.slots.items()})

    tokens = run_watched(llm, kvs, look)
    return tokens, states, num_added


@pytest.mark.parametrize("kvs", [[*KVS, "exact"], [f"{kv}+int8" for kv in KVS[:2]], ["h2o(budget=40)+int8", "int8"]])
def test_sums_of_the_program_have_the_bits_of_those_added_afterwards(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kvs: list[str]
) -> None:
    """Prompts in chunks, decode steps, acts, neighbours that nobody watches."""
    tokens, states, num_added = run(make_llm(max_num_batched_tokens=40), kvs)
    assert len(tokens) == len(kvs)
    assert sum(bool(state) for state in states) > 20
    assert num_added > (20 if len(kvs) == 2 else 40)
    monkeypatch.setattr(StepView, "_adds_at_once", lambda view: not view._watched)
    apart, apart_states, none = run(make_llm(max_num_batched_tokens=40), kvs)
    assert none == 0
    assert tokens == apart
    assert len(states) == len(apart_states)
    for one, other in zip(states, apart_states, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(held, other[name]) for name, held in one.items())


@pytest.mark.parametrize(
    "kv", ["snapkv(budget=12, window=8)", "zigzagkv(budget=12, window=8)", "snapkv(budget=12, window=8)+ada"]
)
def test_queries_tell_what_attention_summed_up_where_layers_scale_differently(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kv: str
) -> None:
    ours = {"vocab_size": VOCAB, "bos_token_id": 256, "eos_token_id": 257, "n_positions": 512}
    folder = make_model(tmp_path / "scaled", **family("gpt2").members()["scaled"] | ours)
    summed = run_watched(make_llm(folder, page_size=8), [kv] * 5, lambda _: None)
    monkeypatch.setattr(PolicyStack, "sums", False)
    assert run_watched(make_llm(folder, page_size=8), [kv] * 5, lambda _: None) == summed
