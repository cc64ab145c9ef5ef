"""Slots that stand for several tokens count as often in the softmax: nothing of what was seen loses its weight, the
step's program has the bits of layer by layer, and who has no such slots is not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pagoda import SamplingParams
from pagoda.engine.policy_state import PolicyState
from pagoda.kv.policies.base import WEIGHTS
from pagoda.kv.view import StepView

from .tiny import prompt
from .watched import run_watched

KVS = ["razor_attention(local=12, every=4)", "kvmerger(budget=24, every=8, weigh=True)"]


def weights_of(sequence: Any) -> torch.Tensor | None:
    """[L, H, N] how often each slot counts, of heads that hold N at most."""
    found, lens = sequence.policy_state.weights, sequence.store.manager.table(sequence.seq_id).lens
    if found is None:
        return None
    lens = torch.from_numpy(lens.astype(int)).view(*found.logs.shape[:2], 1)
    times = torch.ones(*found.logs.shape[:2], int(lens.max()))
    width = min(times.shape[2], found.logs.shape[2])
    times[..., :width] = found.logs[..., :width].exp()
    return times.masked_fill(torch.arange(times.shape[2]) >= lens, 0)


def gathered(llm: Any, kvs: list[str], found: Callable[[Any], object]) -> list[Any]:
    """What is ``found`` of each sequence after each step, where that is something: an engine goes on after an error of
    who looks on, so nothing is judged before the end.
    """
    all_found, num = list[Any](), 0

    def look(result: Any) -> None:
        nonlocal num
        for piece in result.pieces:
            if (one := found(piece.sequence)) is not None:
                all_found.append(one)
            num += 1

    tokens = run_watched(llm, kvs, look)
    assert num >= sum(map(len, tokens.values())) - sum(45 + 9 * index for index in range(len(kvs)))
    return all_found


@pytest.mark.parametrize("kv", [*KVS, "kvmerger(budget=24, every=8, weigh=True)+int8"])
def test_every_token_counts_somewhere(make_llm: Any, kv: str) -> None:
    def found(sequence: Any) -> tuple[torch.Tensor, int] | None:
        times = weights_of(sequence)
        return None if times is None else (times, sequence.num_computed)

    steps = gathered(make_llm(max_num_batched_tokens=40), [kv, kv], found)
    assert len(steps) > 30
    assert max(float(times.max()) for times, _ in steps) > 8
    for times, num_seen in steps:
        totals = times.sum(-1)
        torch.testing.assert_close(totals, torch.full_like(totals, num_seen), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_program_has_the_bits_of_layer_by_layer(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Steps of several policies, some of which act, interrupted by prompts."""
    kvs = [*KVS, "exact", "streaming_llm(budget=24)"]

    def found(sequence: Any) -> tuple[list[int], torch.Tensor | None, torch.Tensor]:
        weights, bases = sequence.policy_state.weights, sequence.store.manager.table(sequence.seq_id).bases
        keys = sequence.store.storage.keys(torch.from_numpy(bases[:1, :1].copy()))[:, :8]
        return sequence.tokens[:], None if weights is None else weights.logs.clone(), keys

    programmed = gathered(make_llm(max_num_batched_tokens=40), kvs, found)
    monkeypatch.setattr(StepView, "arrays", lambda self: None)
    if not at_once:
        monkeypatch.setattr("pagoda.engine.acts_at_once.able", lambda pages: False)
    stepped = gathered(make_llm(max_num_batched_tokens=40), kvs, found)
    assert len(stepped) == len(programmed) > 100
    assert sum(logs is not None for _, logs, _ in programmed) > 30
    for (tokens, logs, keys), (other_tokens, other_logs, other_keys) in zip(programmed, stepped, strict=True):
        assert tokens == other_tokens
        assert (logs is None) == (other_logs is None)
        assert logs is None or torch.equal(logs, other_logs)
        assert torch.equal(keys, other_keys)


@pytest.mark.parametrize("kv", KVS)
def test_weights_change_what_is_answered(make_llm: Any, monkeypatch: pytest.MonkeyPatch, kv: str) -> None:
    """Else the other tests would find nothing."""
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, kv=kv, logprobs=1)

    def answer() -> list[float]:
        [output] = make_llm().generate([prompt(7, 60)], params)
        return [one.logprob for one in output.outputs[0].logprobs]

    weighted = answer()
    monkeypatch.setattr(PolicyState, "weights", None)
    assert answer() != weighted


def test_who_has_none_is_not_changed_by_a_neighbour(make_llm: Any) -> None:
    others = ["exact", "streaming_llm(budget=24)", "h2o(budget=24)"]
    tokens = run_watched(make_llm(), [*others, *KVS], lambda result: None)
    assert {name: ids for name, ids in tokens.items() if int(name) < 3} == run_watched(
        make_llm(), others, lambda result: None
    )


def test_beside_a_selection_every_slot_counts_once(make_llm: Any) -> None:
    def found(sequence: Any) -> bool:
        return sequence.policy_state.weights is None

    assert all(gathered(make_llm(page_size=8), [f"{KVS[0]}+quest(pages=2)"], found))


@pytest.mark.parametrize("kv", KVS)
def test_weights_are_counted_and_forked(make_llm: Any, kv: str) -> None:
    def found(sequence: Any) -> tuple[bool, ...] | None:
        state = sequence.policy_state
        if (weights := state.weights) is None:
            return None
        held, twin = state.num_bytes, state.fork().weights
        where = state.slots if WEIGHTS in state.slots else state.memory
        logs = where.pop(WEIGHTS)
        counted = state.num_bytes == held - logs.nbytes
        where[WEIGHTS] = logs
        return counted, torch.equal(twin.logs, weights.logs), twin.logs.data_ptr() != weights.logs.data_ptr()

    steps = gathered(make_llm(), [kv], found)
    assert len(steps) > 15
    assert all(map(all, steps))


def test_what_attention_goes_on_with_is_not_forgotten(make_llm: Any) -> None:
    """A policy that never acts again leaves its weights, which moved with the slots."""

    def found(sequence: Any) -> tuple[list[str], bool, bool] | None:
        state = sequence.policy_state
        if state.weights is None:
            return None
        twin, held = state.fork(), state.slots[WEIGHTS]
        [moving] = twin.moving(None)
        moved = torch.equal(moving, held)
        twin.moved(sequence.num_computed, None)
        return list(twin.slots), moved, torch.equal(twin.weights.logs, held)

    steps = gathered(make_llm(), [KVS[1]], found)
    assert len(steps) > 15
    assert all(one == ([WEIGHTS], True, True) for one in steps)
