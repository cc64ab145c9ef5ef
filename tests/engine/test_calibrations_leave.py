"""What policies were calibrated to takes room of the pages' while somebody reads it, and leaves when that is wanted."""

from __future__ import annotations

import pytest

from pagoda import SamplingParams
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies.base import Need, Stage

from .conftest import kv_bytes
from .kv_policies import of_stage, tight
from .tiny import prompt

READERS = [
    name
    for name in of_stage(Stage.EVICTION, Stage.CODEC, Stage.SELECTION)
    if Need.CALIBRATION in POLICIES.get(name).needs
]
"""Methods that were calibrated: more bytes together than the pools of these tests have."""
PROMPT = prompt(50, 96)


def params(kv: str | None = None, num: int = 12) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv)


@pytest.fixture
def alone(make_llm) -> dict[str, list[int]]:
    llm = make_llm(page_size=8)
    return {name: llm.generate([PROMPT], params(tight(name)))[0].token_ids for name in READERS}


def sizes(make_llm) -> dict[str, int]:
    """Bytes that each method's calibration and tables take."""
    llm, found = make_llm(page_size=8), {}
    for name in READERS:
        llm.generate([PROMPT], params(tight(name)))
        shared = llm._open().engine.stores.shared
        found[name] = sum(map(shared.size, parse_policy(tight(name)).reads))
    return found


def test_every_calibrated_method_in_turn_in_a_pool_that_cannot_hold_all_they_read(make_llm, alone) -> None:
    read = sizes(make_llm)
    pool = kv_bytes(14) + max(read.values()) + 16 * 1024
    assert sum(read.values()) > pool, "all would fit: the case shows nothing"
    llm = make_llm(page_size=8, kv_memory=pool)
    for _ in range(2):
        for name in READERS:
            output = llm.generate([PROMPT], params(tight(name)))[0]
            assert (output.error, output.token_ids) == (None, alone[name]), name
    stats = llm.stats()["kv"]
    assert 0 < stats["calibration_bytes"] < sum(read.values())
    # A text that needs nearly the whole pool gets it, and what nobody reads is gone.
    longest = pool // kv_bytes(1) * 8 - 13
    output = llm.generate([prompt(51, longest)], params())[0]
    assert (output.error, len(output.token_ids)) == (None, 12)
    assert llm.stats()["kv"]["calibration_bytes"] == 0
    assert llm._open().engine.stores.state_bytes == 0


def test_all_at_once_wait_for_each_other_and_nobody_is_refused(make_llm, alone) -> None:
    read = sizes(make_llm)
    llm = make_llm(page_size=8, kv_memory=kv_bytes(16) + max(read.values()) + 16 * 1024)
    exact = make_llm(page_size=8).generate([prompt(52, 70)], params())[0].token_ids
    prompts = [ids for _ in READERS for ids in (PROMPT, prompt(52, 70))]
    kinds = [kv for name in READERS for kv in (tight(name), None)]
    outputs = llm.generate(prompts, [params(kv) for kv in kinds])
    for kv, output in zip(kinds, outputs, strict=True):
        expected = exact if kv is None else alone[kv.partition("(")[0]]
        assert (output.error, output.token_ids) == (None, expected), kv
    shared = llm._open().engine.stores.shared
    assert not any(shared._readers.values()), "somebody was counted who is gone"


def test_answers_that_fork_read_until_the_last_has_ended(make_llm, alone) -> None:
    llm = make_llm(page_size=8)
    engine = llm._open().engine
    seen: list[bool] = []
    step = engine.step
    engine.step = lambda: (step(), seen.append(engine.stores.shared.is_idle({"locret"})))[0]
    outputs = llm.generate([PROMPT], SamplingParams(n=3, max_tokens=9, seed=5, ignore_eos=True, kv="locret(budget=24)"))
    assert len(outputs[0].outputs) == 3
    assert seen[-1]
    assert not any(seen[:-1])


def test_a_calibration_larger_than_the_pool_is_refused_by_name(make_llm) -> None:
    read = sizes(make_llm)
    name = max(read, key=read.__getitem__)
    llm = make_llm(page_size=8, kv_memory=max(kv_bytes(2), read[name] // 2))
    kv = tight(name)
    with pytest.raises(Exception, match=f"calibration of {name} takes"):
        llm.generate([prompt(53, 4)], params(kv, 2))
    assert llm.generate([prompt(53, 4)], params(num=2))[0].error is None


def test_no_prefix_goes_for_a_calibration_that_would_not_fit_all_the_same(make_llm) -> None:
    llm = make_llm(page_size=8, kv_memory=kv_bytes(16))
    llm.generate([prompt(54, 64)], params(num=1))
    stores = llm._open().engine.stores
    kept = stores.default.manager.idle_blocks()
    assert kept >= 8
    assert not stores.hold_shared("none", kv_bytes(17))
    assert stores.default.manager.idle_blocks() == kept
    assert stores.hold_shared("none", kv_bytes(16))
    assert stores.default.manager.idle_blocks() == 0
    assert stores.could_hold(kv_bytes(16)), "nobody reads it"
    stores.shared.use({"none"})
    assert not stores.could_hold(1)


def test_tables_of_encoded_pages_are_made_again_where_they_left(make_llm, alone) -> None:
    """A store whose calibration went has no pages of it either: what comes back may be another."""
    name = next(name for name in READERS if POLICIES.get(name).stage is Stage.CODEC)
    llm = make_llm(page_size=8)
    first = llm.generate([PROMPT], params(tight(name)))[0].token_ids
    stores = llm._open().engine.stores
    store = stores.of(parse_policy(tight(name)).codec)
    held = stores.shared.num_bytes
    assert held > 0
    stores._drop_idle(stores.total_bytes)
    assert stores.shared.num_bytes == 0
    assert stores.remembered_bytes == 0
    assert store.manager.pool.num_blocks == 0
    stores.audit()
    assert llm.generate([PROMPT], params(tight(name)))[0].token_ids == first == alone[name]
    assert stores.shared.num_bytes == held
