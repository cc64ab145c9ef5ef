"""KV policies inside the engine: what they drop is free, what they keep is right, and it survives preemption."""

from __future__ import annotations

import pytest

from pagoda import ConfigError, SamplingParams
from pagoda.kv.policies import POLICIES

from .conftest import kv_bytes
from .tiny import prompt

LOSSY = [name for name in POLICIES.names() if not POLICIES.get(name).exact]  # type: ignore[attr-defined]
PROMPTS = [prompt(40, 61), prompt(41, 18), prompt(42, 40)]


def params(kv: str, num: int = 16) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv)


@pytest.mark.parametrize("name", LOSSY)
def test_dropped_pages_go_to_the_next_request(make_llm, name) -> None:
    """Two exact sequences of 64 tokens need 16 blocks; with half the KV dropped they live in 12 at once."""
    llm = make_llm(kv_memory=kv_bytes(16), page_size=8, enable_prefix_caching=False)
    engine, intake = llm._open().engine, llm._intake
    engine.add(intake.request("lossy", prompt(50, 64), params(f"{name}(budget=8)", 30), stream=True))
    engine.step()
    pool = engine.manager.pool
    assert pool.num_used_pages == 4  # 8 slots of 4 heads
    assert engine.manager.held_bytes(1) == pool.num_used_pages * engine.manager.fmt.page_bytes
    engine.add(intake.request("exact", prompt(51, 64), params("exact", 30), stream=True))
    exact = None
    while engine.has_work:
        for output in engine.step():
            if output.request_id == "exact":
                exact = output
            assert output.num_preemptions == 0
    assert exact is not None
    assert exact.finished
    assert pool.num_used_pages == 0


@pytest.mark.parametrize("name", LOSSY)
def test_a_budget_beyond_the_context_is_exact(make_llm, oracle, name) -> None:
    outputs = make_llm().generate(PROMPTS, params(f"{name}(budget=400)"))
    assert [output.token_ids for output in outputs] == [oracle(ids, 16) for ids in PROMPTS]


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("budget", ["7", "16", "0.5"])
def test_same_tokens_whatever_happens_around(make_llm, name, budget) -> None:
    kv = f"{name}(budget={budget})"
    alone = [make_llm(page_size=8).generate([ids], params(kv))[0] for ids in PROMPTS]
    assert all(output.memory.peak > 0 for output in alone)
    settings = [
        {"max_num_batched_tokens": 16, "max_num_seqs": 8},
        {"kv_memory": kv_bytes(16), "enable_prefix_caching": False},
        {"kv_memory": kv_bytes(16)},
    ]
    for options in settings:
        llm = make_llm(page_size=8, **options)
        for _ in range(2):
            mixed = llm.generate([*PROMPTS, prompt(60, 50)], [params(kv)] * 3 + [params("exact", 30)])
            assert [output.token_ids for output in mixed[:3]] == [output.token_ids for output in alone]


@pytest.mark.parametrize("name", LOSSY)
def test_a_compressed_sequence_that_was_preempted_ends_in_the_same_tokens(make_llm, name) -> None:
    wanted = params(f"{name}(budget=12)", 30)
    calm = make_llm(page_size=8).generate(PROMPTS, wanted)
    llm = make_llm(page_size=8)
    engine, intake = llm._open().engine, llm._intake
    for index, ids in enumerate(PROMPTS):
        engine.add(intake.request(str(index), ids, wanted))
    done, steps = {}, 0
    while engine.has_work:
        done.update((output.request_id, output) for output in engine.step())
        steps += 1
        if steps in (5, 20, 45):
            for sequence in list(engine.scheduler.running.values()):
                engine.scheduler.preempt(sequence)
    assert steps > 60  # tokens are replayed one by one, so that the policy acts as it did
    assert [done[str(index)].token_ids for index in range(3)] == [output.token_ids for output in calm]


def test_answers_share_a_compressed_prompt(make_llm) -> None:
    several = SamplingParams(n=3, seed=8, max_tokens=20, ignore_eos=True, kv="recent(budget=10)")
    one = make_llm(page_size=8)
    output = one.generate([PROMPTS[0]], several)[0]
    again = make_llm(page_size=8, kv_memory=kv_bytes(16), max_num_seqs=2).generate([PROMPTS[0]], several)[0]
    assert [a.token_ids for a in output.outputs] == [a.token_ids for a in again.outputs]


def test_a_shared_prefix_is_copied_before_it_is_evicted_from(make_llm, oracle) -> None:
    llm = make_llm(page_size=8)
    exact = llm.stream(PROMPTS[0], params("exact", 40))
    next(exact)
    lossy = llm.generate([PROMPTS[0]], params("random(budget=9)"))[0]
    assert lossy.usage.cached_tokens == 56
    assert list(exact)[-1].token_ids == oracle(PROMPTS[0], 40)
    assert llm.generate([PROMPTS[0]], params("exact"))[0].token_ids == oracle(PROMPTS[0], 16)


def test_unknown_policies_are_refused_before_anything_runs(make_llm) -> None:
    llm = make_llm()
    with pytest.raises(ConfigError, match="accepted: exact"):
        llm.generate([PROMPTS[0]], params("snapkw"))
    assert llm.stats()["steps"]["requests_accepted"] == 0
    with pytest.raises(ConfigError, match="accepted: exact"):
        make_llm(kv="nothing")
