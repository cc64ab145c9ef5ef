"""What policies remember is leased: counted to the byte, taken from the same budget as the pages, given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pagoda import SamplingParams
from pagoda.bench.random_calibrations import calibrated
from pagoda.engine.calibrations import Calibrations

from .conftest import kv_bytes
from .tiny import prompt

KVS = ["h2o(budget=40)", "snapkv(budget=20)", "razor_attention(local=12)", "kvmerger(budget=24, weigh=True)",
       "quest(pages=2)", "loki(pages=2)", "tokenselect(pages=2)"]  # fmt: skip


def params(kv: str, num: int = 16) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv)


@pytest.mark.parametrize("kv", KVS)
def test_the_lease_is_what_the_states_hold_and_the_calibration(make_llm: Any, tiny: Path, kv: str) -> None:
    name, shared = kv.partition("(")[0], 0
    if name in calibrated():
        shared = sum(t.nbytes for t in Calibrations(tiny).load(name).values())
    llm = make_llm(page_size=8, max_num_batched_tokens=40, max_num_seqs=8)
    engine = llm._open().engine
    for index in range(2):
        engine.add(llm._intake.request(str(index), prompt(30 + index, 60), params(kv)))
    most = 0
    while engine.has_work:
        engine.step()
        held = sum(s.policy_state.num_bytes for s in engine.scheduler.running.values())
        assert engine.stores.state_bytes == held
        assert llm.stats()["memory"]["accounts"]["policies"]["leased_bytes"] == held + shared
        most = max(most, held)
    assert most > 0
    assert engine.stores.state_bytes == 0


def test_an_aborted_sequence_leaves_no_lease(make_llm: Any) -> None:
    llm = make_llm()
    engine = llm._open().engine
    engine.add(llm._intake.request("gone", prompt(1, 40), params("h2o(budget=400)")))
    engine.step()
    assert engine.stores.state_bytes > 0
    engine.abort("gone")
    assert engine.stores.state_bytes == 0


def test_who_finds_no_room_for_it_gives_way_and_ends_the_same(make_llm: Any) -> None:
    """Two of 48 tokens fill 13 blocks but for what a state takes: they run one after the other."""
    prompts, kv = [prompt(50, 44), prompt(51, 44)], "h2o(budget=400)"
    wanted = [make_llm(page_size=8).generate([ids], params(kv, 6))[0].token_ids for ids in prompts]
    llm = make_llm(page_size=8, kv_memory=kv_bytes(14), max_model_len=104, enable_prefix_caching=False)
    outputs = llm.generate(prompts, params(kv, 6))
    assert [output.token_ids for output in outputs] == wanted
    assert sum(output.num_preemptions for output in outputs) > 0


@pytest.mark.parametrize("kv", ["kivi", "tokenselect(pages=3)", "h2o(budget=400)"])
@pytest.mark.parametrize("num_blocks", [13, 14, 15, 16, 17])
def test_who_gave_way_does_not_come_back_before_there_is_room(make_llm: Any, kv: str, num_blocks: int) -> None:
    """Where prompts run alone, it would be computed and thrown out in every step, and nobody would decode."""
    options = {"page_size": 8, "kv_memory": kv_bytes(num_blocks), "max_model_len": 104, "enable_prefix_caching": False}
    llm = make_llm(**options, scheduling="prefill_first")
    engine = llm._open().engine
    for at in range(2):
        engine.add(llm._intake.request(str(at), prompt(50 + at, 44), params(kv, 6)))
    done = [output for _ in range(40) for output in engine.step() if output.finished]
    assert [(output.request_id, output.error) for output in done] == [("0", None), ("1", None)]
    assert engine.scheduler.num_preemptions <= 1


def test_what_never_fits_ends_in_an_error_that_says_so(make_llm: Any, oracle: Any) -> None:
    llm = make_llm(page_size=8, kv_memory=kv_bytes(13), max_model_len=104)
    ids = prompt(52, 97)
    assert llm.generate([ids], params("exact", 6))[0].token_ids == oracle(ids, 6)
    output = llm.generate([ids], params("h2o(budget=400)", 6))[0]
    assert output.error is not None
    assert "what kv='h2o' remembers of" in output.error
    assert output.no_room
    assert llm.generate([ids], params("exact", 6))[0].token_ids == oracle(ids, 6)


def test_what_it_remembered_until_then_is_given_back_with_the_error(make_llm: Any, oracle: Any) -> None:
    """Computed in parts, it holds bytes of the parts before: whoever comes next finds the whole pool."""
    llm = make_llm(page_size=8, kv_memory=kv_bytes(13), max_model_len=104, max_num_batched_tokens=16)
    ids = prompt(52, 97)
    assert "what kv='h2o' remembers of" in (llm.generate([ids], params("h2o(budget=400)", 6))[0].error or "")
    assert llm._open().engine.stores.state_bytes == 0
    assert llm.generate([ids], params("exact", 6))[0].token_ids == oracle(ids, 6)


def test_one_that_runs_alone_and_finds_no_page_is_not_tried_forever(make_llm: Any) -> None:
    """Pages and notes grow until the last page is not there; computed again, they would grow the same way."""
    llm = make_llm(page_size=8, kv_memory=kv_bytes(21), max_model_len=160)
    outputs = llm.generate([prompt(42, 128), prompt(60, 50)], [params("loki(pages=3)"), params("recent(budget=9)")])
    assert outputs[0].error is not None
    assert "of KV beside what kv='loki' remembers, and" in outputs[0].error
    assert [output.no_room for output in outputs] == [True, False]
    assert outputs[1].error is None
    assert len(outputs[1].token_ids) == 16


def test_who_gives_way_to_another_is_not_said_to_find_no_room(make_llm: Any, oracle: Any) -> None:
    """What the first remembers is given back after the step in which it lost its pages: until then the second, which
    takes its place, finds no room either.
    """
    options = {"page_size": 8, "kv_memory": kv_bytes(16), "max_model_len": 128, "scheduling": "fastserve(quantum=1)"}
    llm = make_llm(**options, enable_prefix_caching=False)
    wanted = llm.generate([prompt(61, 40)], params("h2o(budget=400)", 30))[0].token_ids
    engine = llm._open().engine
    engine.add(llm._intake.request("first", prompt(61, 40), params("h2o(budget=400)", 30)))
    for _ in range(12):
        engine.step()
    engine.add(llm._intake.request("second", prompt(62, 123), params("exact", 5)))
    found = {}
    for _ in range(200):
        found |= {output.request_id: output for output in engine.step() if output.finished}
    assert {name: output.error for name, output in found.items()} == {"first": None, "second": None}
    assert found["first"].token_ids == wanted
    assert found["second"].token_ids == oracle(prompt(62, 123), 5)
    assert found["first"].num_preemptions > 0
