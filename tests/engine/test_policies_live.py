"""KV policies inside the engine: what only one of them shows. What holds for all is in test_policy_conformance.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from pagoda import ConfigError, SamplingParams
from pagoda.core.errors import PagodaError
from pagoda.engine import acts_at_once, observing
from pagoda.engine.eviction import Evictor
from pagoda.engine.sequence import Sequence
from pagoda.kv.policies._inputs import Inputs
from pagoda.kv.policies._scored import Rolling, Scored
from pagoda.kv.policies._stack import PolicyStack
from pagoda.kv.policies.base import Need

from .conftest import kv_bytes
from .tiny import prompt


def params(kv: str, num: int = 16) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv)


def test_a_prefix_hit_leaves_the_queries_that_a_policy_must_see(make_llm) -> None:
    """snapkv needs the last eight queries of the prompt, h2o all of them; recent none."""
    for kv, cached in (("recent(budget=9)", 56), ("snapkv(budget=9, window=8)", 48), ("h2o(budget=9)", 0)):
        llm = make_llm(page_size=8)
        llm.generate([prompt(40, 61)], params("exact"))
        assert llm.generate([prompt(40, 61)], params(kv))[0].usage.cached_tokens == cached


def test_a_compressed_sequence_is_replayed_in_chunks_between_acts(make_llm) -> None:
    """After the prompt snapkv never acts again, so 20 known tokens take one step; recent acts every six here."""
    for kv, most in (("snapkv(budget=9, window=8)", 3), ("recent(budget=12)", 6)):
        llm = make_llm(page_size=8)
        engine, intake = llm._open().engine, llm._intake
        engine.add(intake.request("a", prompt(40, 61), params(kv, 40)))
        for _ in range(20):
            engine.step()
        (sequence,) = engine.scheduler.running.values()
        engine.scheduler.preempt(sequence)
        steps = 0
        while sequence.num_computed < 61 + 19:
            engine.step()
            steps += 1
        assert steps <= most


def test_hidden_states_of_the_newest_tokens_are_those_of_the_model(make_llm, oracle) -> None:
    """In one chunk or several, before the first act of a policy that asks for them; as many again before the others."""
    seen: list[torch.Tensor] = []

    @dataclass(frozen=True)
    class Looks(Scored, Rolling):
        needs: ClassVar[frozenset[Need]] = frozenset({Need.HIDDEN})
        window = 5

        def scores(self, inputs: Inputs) -> torch.Tensor:
            assert inputs.hidden is not None
            assert inputs.queries is None
            seen.append(inputs.hidden.clone())
            return torch.zeros(*inputs.lens.shape, inputs.num_slots)

    ids = prompt(40, 61)
    with torch.inference_mode():
        wanted = oracle.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -5:]
    answers = []
    for tokens in (64, 24, 58):
        llm = make_llm(page_size=8, max_num_batched_tokens=tokens, max_num_seqs=8)
        engine = llm._open().engine
        request = llm._intake.request("0", ids, params("recent(budget=12)", 12))
        request.policy = PolicyStack.join([("looks", Looks(budget=12, every=4))])
        engine.add(request)
        before = len(seen)
        while engine.has_work:
            answers += [out.token_ids for out in engine.step() if out.finished]
        torch.testing.assert_close(seen[before], wanted, rtol=1e-4, atol=1e-4)
        assert [len(rows) for rows in seen[before:]] == [5, 5, 5]
        assert engine.stores.state_bytes == 0
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("kv", ["kivi(window=1000000000)", "snapkv(budget=20)+kivi(window=1000000000)",
                                "think(every=1000000000)", "bfp_outlier_rearrange(block=1000000000)"])  # fmt: skip
def test_windows_wider_than_a_sequence_take_what_it_has(make_llm, kv) -> None:
    llm = make_llm(page_size=8)
    outputs = llm.generate([prompt(40, 61), prompt(41, 30)], [params(kv), params("exact")])
    assert [output.error for output in outputs] == [None, None]
    assert max(output.memory.peak for output in outputs) < 1 << 20


def test_what_does_not_fit_a_models_pages_is_refused_before_it_is_in_a_batch(make_llm) -> None:
    llm = make_llm(page_size=8)
    for kv, words in (
        ("lserve(part=3)", "part=3 does not divide pages of 8 slots; give a divisor"),
        ("shadowkv(chunk=3)", "chunk=3 does not divide pages of 8 slots; give a divisor"),
        ("shadowkv(chunk=0)", "chunk=0"),
        ("csr(nonzeros=9)", "its heads of 8 and 8 channels are said whole by fewer than 9 atoms"),
    ):
        with pytest.raises(PagodaError, match=words):
            llm.generate([prompt(40, 61)], params(kv))
    assert llm.stats()["steps"]["requests_accepted"] == 0


def test_unknown_policies_are_refused_before_anything_runs(make_llm) -> None:
    llm = make_llm()
    with pytest.raises(ConfigError, match="accepted: a2ats, ada, alisa"):
        llm.generate([prompt(40, 61)], params("snapkw"))
    assert llm.stats()["steps"]["requests_accepted"] == 0
    with pytest.raises(ConfigError, match="accepted: a2ats, ada, alisa"):
        make_llm(kv="nothing")


def test_the_next_prompt_comes_in_where_it_fits_beside_what_others_will_take(make_llm) -> None:
    """22 blocks: a prompt of 64 tokens is 8 blocks until it is 2, and 3 in the end. With four running that leaves 10,
    of which the four take at most two in the two steps that the fifth needs: a block in reserve for each would not fit.
    """
    llm = make_llm(
        kv_memory=kv_bytes(22), page_size=8, max_model_len=80, max_num_batched_tokens=72, enable_prefix_caching=False
    )
    engine, most = llm._open().engine, 0
    for index in range(8):
        engine.add(llm._intake.request(str(index), prompt(80 + index, 64), params("snapkv(budget=16, window=8)", 8)))
    while engine.has_work:
        assert all(output.num_preemptions == 0 for output in engine.step())
        done = [s for s in engine.scheduler.running.values() if s.num_computed >= s.prompt_len]  # type: ignore[attr-defined]
        most = max(most, len(done))
    assert most == 5


@pytest.mark.parametrize("name", ["alisa", "corm", "scissorhands", "scope"])
def test_attention_summed_up_token_by_token_chooses_as_attention_computed_again(make_llm, monkeypatch, name) -> None:
    """Sums and counts that decode steps leave, beside those of the window's queries over the keys that are held."""
    kv, prompts, received = f"{name}(budget=24, every=8, window=4)", [prompt(31, 40), prompt(32, 25)], []
    note = observing._note
    monkeypatch.setattr(observing, "_note", lambda due, summed: received.extend(due) or note(due, summed))
    summed = make_llm(page_size=8).generate(prompts, params(kv, 40))
    num = len(received)
    assert num > 8, "nothing was summed up"
    monkeypatch.setattr(Sequence, "sums", lambda *_: False)
    again = make_llm(page_size=8, max_num_seqs=3).generate(prompts, params(kv, 40))
    assert len(received) == num
    assert [output.token_ids for output in summed] == [output.token_ids for output in again]


def test_acts_in_one_call_choose_and_move_as_those_in_several(make_llm, monkeypatch) -> None:
    """Each policy twice in one batch of random prompts: with the kernels' one call, and with masks and moves."""
    kvs = ["h2o(budget=24, every=6)", "corm(budget=24)", "hashevict(budget=20, every=4)", "scope(budget=24)",
           "duo_attention(local=10)", "razor_attention(local=10)", "alisa(budget=20, every=8, window=6)"]  # fmt: skip
    monkeypatch.setattr(
        acts_at_once, "able", lambda pages: False
    )  # that of several sequences: tests/engine/test_acts.py
    prompts, chosen, choose = [prompt(60 + i, 38 + i) for i in range(len(kvs))], [], Evictor._choose
    monkeypatch.setattr(Evictor, "_choose", lambda *args: chosen.append(choose(*args)) or chosen[-1])
    llm = make_llm(page_size=8)
    at_once = llm.generate(prompts, [params(kv, 40) for kv in kvs])
    dropped = llm.stats()["steps"]["slots_dropped"]
    assert sum(chosen) > 10, "nothing was done in one call"
    monkeypatch.setattr(Evictor, "_choose", lambda *_: False)
    llm = make_llm(page_size=8)
    again = llm.generate(prompts, [params(kv, 40) for kv in kvs])
    assert [output.token_ids for output in at_once] == [output.token_ids for output in again]
    assert llm.stats()["steps"]["slots_dropped"] == dropped
