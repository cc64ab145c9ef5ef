"""Steps that have nothing to do with a sequence's policy are those of a sequence without one, and change nothing."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from pagoda import SamplingParams
from pagoda.engine.policy_state import PolicyState
from pagoda.engine.runner import QueryTap
from pagoda.engine.sequence import Sequence

from .tiny import prompt

KVS = [
    "streaming_llm(budget=40, every=5)", "snapkv(budget=20)", "snapkv(budget=20)+quest(pages=2)", "exact",
    "h2o(budget=40, every=8)", "scissorhands(budget=40, window=4, every=8)", "hashevict(budget=40, every=8)",
    "razor_attention(local=24, every=6)", "scope(budget=40, every=16, window=6)", "snapkv(budget=20)+kivi",
    "int2(every=16)", "kivi(window=4, every=16)",
]  # fmt: skip


def run(llm: Any, kvs: list[str]) -> tuple[dict[str, list[int]], list[bool], tuple[int, int]]:
    """Tokens of each, which steps were left alone, acts and dropped slots."""
    engine = llm._open().engine
    apply, alone, tokens = engine._evictor.apply, [], {}

    def watched(result: Any) -> Any:
        alone.append(result.plain)
        for piece in result.batch:
            tokens[piece.sequence.group.request.request_id] = piece.sequence.tokens
        return apply(result)

    engine._evictor.apply = watched
    for index, kv in enumerate(kvs):
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, kv=kv)
        engine.add(llm._intake.request(str(index), prompt(70 + index, 45 + 3 * index), params))
    while engine.has_work:
        engine.step()
        held = sum(s.policy_state.num_bytes for s in engine.scheduler.running.values())
        assert engine.stores.state_bytes == held
    return tokens, alone, (engine.counters.policy_acts, engine.counters.slots_dropped)


@pytest.mark.parametrize("kvs", [[kv] for kv in KVS] + [KVS[:2], KVS[4:8], KVS], ids=str)
def test_steps_that_are_left_alone_change_nothing(
    make_llm: Any, monkeypatch: pytest.MonkeyPatch, kvs: list[str]
) -> None:
    tokens, alone, acts = run(make_llm(page_size=8, max_num_batched_tokens=20), kvs)
    monkeypatch.setattr(Sequence, "is_left_alone", lambda sequence, start, end: sequence.plain)
    others, never, same = run(make_llm(page_size=8, max_num_batched_tokens=20), kvs)
    assert tokens == others
    assert acts == same
    assert len(alone) == len(never)
    if kvs == ["exact"]:
        assert all(alone)
    elif len(kvs) > 3 or kvs[0] in (KVS[2], KVS[4], KVS[9]):  # somebody looks at every token of an answer
        assert sum(alone) < len(alone) / 2
    else:
        assert sum(alone) > 10
        assert not any(never)


def test_a_policy_that_breaks_where_it_is_left_alone_ends_its_request(make_llm: Any) -> None:
    """As when the scheduler asks how much it keeps."""
    engine = (llm := make_llm(page_size=8))._open().engine
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, kv="snapkv(budget=20)")
    engine.add(llm._intake.request("0", prompt(70, 45), params))
    for _ in range(3):
        engine.step()
    (sequence,) = engine.scheduler.running.values()
    assert sequence.is_left_alone(sequence.num_computed, sequence.num_computed + 1)
    sequence.breaks(ValueError("no idea"), "saying how much it keeps")
    (output,) = engine.step()
    assert output.error == "kv='snapkv(budget=20)' failed, saying how much it keeps: ValueError: no idea"
    assert not engine.has_work


def test_what_a_sequence_remembers_does_not_wait_for_the_next_step(make_llm: Any) -> None:
    """A view goes on from step to step, and those who watched one may be over."""

    def remembered() -> int:
        gc.collect()
        return sum(type(one) in (Sequence, PolicyState, QueryTap) for one in gc.get_objects())

    llm, before = make_llm(page_size=8), remembered()
    kvs = ["h2o(budget=40, every=8)", "scissorhands(budget=40, window=16, every=8)", "quest(pages=2)"]
    for kv in kvs:
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, kv=kv)
        llm.generate([prompt(70, 45)], params)
        assert remembered() == before
