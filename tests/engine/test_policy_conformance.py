"""Every registered eviction and allocator in the engine, found by its file: budgets, bytes, exactness, sharing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pagoda import SamplingParams
from pagoda.kv.policies._heads import SplitHeads
from pagoda.kv.policies._scored import Once, Rolling

from .conftest import kv_bytes
from .kv_policies import LOSSY, spelled
from .tiny import prompt

PROMPTS = [prompt(40, 61), prompt(41, 18), prompt(42, 40)]


def params(kv: str, num: int = 16, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv, **more)


def slots_held(engine: Any, sequence: Any) -> tuple[float, int]:
    """Slots of a head, on the average of all heads, and of the head that has the fewest."""
    lens = engine.manager.table(sequence.seq_id).lens
    return float(lens.mean()), int(lens.min())


def check_budget(sequence: Any, mean: float, least: int) -> None:
    """A budget of 16, in words of its own: what a policy promises (``most_slots``) is held to it as well."""
    kind, answered = sequence.policy.eviction, sequence.num_computed - sequence.prompt_len
    promised = sequence.policy.most_slots(sequence.num_computed, sequence.prompt_len)
    if isinstance(kind, SplitHeads):  # some heads keep everything, the others sinks and a window
        assert least <= kind.sinks + 16
        assert mean <= promised <= sequence.num_computed
    else:
        assert isinstance(kind, Once | Rolling)
        assert mean <= promised <= (16 + answered if isinstance(kind, Once) else 16)
        has_bar = getattr(kind, "least", -math.inf) > -math.inf  # what is below it goes, even where there is room
        assert answered or has_bar or mean == kind.slots_after(sequence.prompt_len), "a number, not a ceiling"


@pytest.mark.parametrize("name", LOSSY)
def test_no_more_than_the_budget_at_any_time_and_the_pages_serve_others(make_llm, name) -> None:
    """Two exact sequences need 12 and 8 blocks; with a budget of 16 the first leaves room for the second in 14."""
    llm = make_llm(kv_memory=kv_bytes(14), max_model_len=112, page_size=8, enable_prefix_caching=False)
    engine, intake = llm._open().engine, llm._intake
    kv, pool = spelled(name, 16), engine.manager.pool
    engine.add(intake.request("lossy", prompt(50, 64), params(kv, 30), stream=True))
    engine.step()
    (sequence,) = engine.scheduler.running.values()
    check_budget(sequence, *slots_held(engine, sequence))
    used = pool.num_used_pages
    assert used < 8 * 4, "nothing was given back"
    assert engine.manager.held_bytes(1) == used * engine.manager.fmt.page_bytes
    engine.add(intake.request("exact", prompt(51, 60), params("exact", 4), stream=True))
    done, beside = set(), False
    while engine.has_work:
        for output in engine.step():
            assert output.num_preemptions == 0
            assert output.error is None
            done |= {output.request_id} if output.finished else set()
        for sequence in engine.scheduler.running.values():
            if sequence.policy.eviction is not None:
                check_budget(sequence, *slots_held(engine, sequence))
        beside |= len(engine.scheduler.running) == 2 and pool.num_used_pages > used
    assert done == {"lossy", "exact"}
    assert beside, "the exact request never took the pages"
    assert pool.num_used_pages == 0


@pytest.mark.parametrize("name", LOSSY)
def test_a_budget_beyond_the_context_is_exact(make_llm, oracle, name) -> None:
    outputs = make_llm().generate(PROMPTS, params(spelled(name, 400)))
    assert [output.token_ids for output in outputs] == [oracle(ids, 16) for ids in PROMPTS]


@pytest.mark.parametrize("name", LOSSY)
def test_same_tokens_whatever_happens_around(make_llm, name) -> None:
    """Alone; then in small chunks, in a pool that pushes sequences out, beside other policies, with a warm cache."""
    texts = [spelled(name, budget) for budget in (9, 16, 0.5)]
    wanted = [params(kv, 14) for kv in texts]
    calm = make_llm(page_size=8)
    alone = [calm.generate([ids], param)[0] for ids, param in zip(PROMPTS, wanted, strict=True)]
    for options in (
        {"kv_memory": kv_bytes(13)},
        {"kv_memory": kv_bytes(13), "enable_prefix_caching": False, "max_num_batched_tokens": 24, "max_num_seqs": 8},
    ):
        llm = make_llm(page_size=8, max_model_len=104, **options)
        for _ in range(2):
            mixed = llm.generate([*PROMPTS, prompt(60, 40)], [*wanted, params("exact", 14)])
            assert [output.token_ids for output in mixed[:3]] == [output.token_ids for output in alone], options


@pytest.mark.parametrize("name", LOSSY)
def test_a_shared_prefix_is_copied_before_it_is_evicted_from(make_llm, oracle, name) -> None:
    llm = make_llm(page_size=8)
    exact = llm.stream(PROMPTS[0], params("exact", 30))
    next(exact)
    lossy = llm.generate([PROMPTS[0]], params(spelled(name, 9)))[0]
    again = make_llm(page_size=8, enable_prefix_caching=False).generate([PROMPTS[0]], params(spelled(name, 9)))[0]
    assert lossy.token_ids == again.token_ids
    assert list(exact)[-1].token_ids == oracle(PROMPTS[0], 30)
    assert llm.generate([PROMPTS[0]], params("exact"))[0].token_ids == oracle(PROMPTS[0], 16)
