"""Every registered eviction, allocator, selection and codec in the engine, found by its file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from pagoda import SamplingParams
from pagoda.bench.random_calibrations import calibrated
from pagoda.engine.calibrations import Calibrations
from pagoda.kv.codecs import CODECS
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies.base import Stage

from .conftest import kv_bytes
from .interrupted import check_interrupted
from .kv_policies import EVERY, of_stage, tight
from .tiny import prompt


def params(kv: str, num: int = 24) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num, ignore_eos=True, seed=5, kv=kv)


@pytest.mark.parametrize("name", [*EVERY, "quest(pages=3, reuse=3)"])
def test_preempted_aborted_forked(make_llm: Any, name: str) -> None:
    """A recomputed sequence ends in the same state; answers of one prompt agree with answers alone; an abort frees."""
    rng = random.Random(name)
    lengths = [rng.randint(1, 70), 8 * rng.randint(2, 8), 8 * rng.randint(2, 8) + 1]
    prompts = [prompt(70 + index, length) for index, length in enumerate(lengths)]
    check_interrupted(make_llm, prompts, prompt(40, 61), params(tight(name) if name in EVERY else name))


@pytest.mark.parametrize("name", ["exact", *of_stage(Stage.CODEC), *CODECS.names()])
def test_what_a_codec_saves_is_taken_by_another_sequence(make_llm: Any, tiny: Path, name: str) -> None:
    """An exact sequence of 124 tokens needs 16 blocks and another of 32 four; there are 18, and what is calibrated."""
    learned = Calibrations(tiny).load(name).values() if name in calibrated() else ()
    room = kv_bytes(18) + sum(tensor.nbytes for tensor in learned)
    llm = make_llm(page_size=8, kv_memory=room, max_model_len=136, enable_prefix_caching=False)
    engine, intake = llm._open().engine, llm._intake
    engine.add(intake.request("first", prompt(50, 100), params("exact" if name == "exact" else tight(name))))
    while not any(s.num_computed > s.prompt_len for s in engine.scheduler.running.values()):
        engine.step()
    (first,) = engine.scheduler.running.values()
    assert (first.group.held_bytes < kv_bytes(13)) == (name != "exact"), "of 101 tokens"
    engine.add(intake.request("second", prompt(51, 8), params("exact")))
    done, beside = {}, 0
    while engine.has_work:
        done.update((output.request_id, output) for output in engine.step())
        running = list(engine.scheduler.running.values())
        held = sum(s.group.held_bytes for s in running)
        assert held + sum(t.nbytes for t in learned) <= room
        beside += len(running) == 2 and all(s.num_computed > s.prompt_len for s in running)
    pushed_out = sum(output.num_preemptions for output in done.values())
    assert [len(output.token_ids) for output in done.values()] == [24, 24]
    assert (pushed_out == 0 and beside >= 16) == (name != "exact"), (pushed_out, beside)
    llm._open().audit()
    assert engine.stores.state_bytes == 0
    assert all(store.manager.pool.num_used_pages == 0 for store in engine.stores)


SMALL = [name for name in of_stage(Stage.EVICTION) if hasattr(POLICIES.get(name), "budget")]
SMALL.remove("streaming_llm")  # refuses a budget that leaves no window


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("budget", [1, 2, 5])
def test_budgets_smaller_than_what_is_always_kept(make_llm: Any, name: str, budget: int) -> None:
    """Fewer slots than sinks, windows and shares of the newest tokens would take."""
    llm = make_llm(page_size=8, max_model_len=136)
    prompts = [prompt(60, length) for length in (1, 5, 70)]
    outputs = llm.generate(prompts, params(f"{name}(budget={budget})", 40))
    assert [(output.error, len(output.token_ids)) for output in outputs] == [(None, 40)] * 3
