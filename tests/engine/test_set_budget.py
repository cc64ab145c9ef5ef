"""Budgets that change while an engine runs: pages follow, sequences wait, tokens stay the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pagoda import LLM, AsyncLLM, SamplingParams
from pagoda.budget.ledger import REQUIRED, Lease
from pagoda.core.errors import BudgetError, ConfigError
from pagoda.engine.budgeting import set_budgets
from pagoda.engine.build import Built
from pagoda.engine.config import EngineConfig
from pagoda.engine.intake import Intake

from .tiny import VOCAB

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB) for _ in range(length)] for _ in range(count)]


def build_tiny(tiny: Path) -> Built:
    from pagoda.engine.build import build

    return build(EngineConfig(str(tiny), memory="3GiB", structured_output=False))


def lease_all_that_is_free(built: Built) -> Lease:
    """Between looking and taking, a step may have leased a page: then again."""
    for _ in range(100):
        with suppress(BudgetError):
            return built.ledger.lease("weights", built.ledger.free_bytes, "another model")
    raise AssertionError("never was free what had just been free")


def budget_for(built: Built, num_blocks: int) -> int:
    """The budget that leaves room for that many blocks of KV."""
    beside = built.ledger.leased_bytes - built.ledger.leased_by("kv")
    return beside + num_blocks * built.sizes.fmt.block_bytes


def test_a_shrinking_budget_preempts_and_changes_no_token(tiny: Path, oracle: Callable[..., list[int]]) -> None:
    built = build_tiny(tiny)
    engine, intake, asked = built.engine, Intake(built), prompts(8, 40)
    for number, prompt in enumerate(asked):
        engine.add(intake.request(str(number), prompt, GREEDY))
    outputs = []
    for step in range(400):
        if step == 4:
            set_to = budget_for(built, 17)
            assert set_budgets(built, set_to) == set_to
            assert built.ledger.leased_by("kv") <= 17 * built.sizes.fmt.block_bytes
            assert built.ledger.total_bytes == set_to
        outputs += [o for o in engine.step() if o.finished]
        assert built.ledger.leased_bytes <= built.ledger.total_bytes
        if not engine.has_work:
            break
    assert engine.scheduler.num_preemptions > 0
    assert {o.request_id: o.outputs[0].token_ids for o in outputs} == {
        str(number): oracle(prompt, 24) for number, prompt in enumerate(asked)
    }
    built.close()


def test_a_growing_budget_lets_more_in(tiny: Path) -> None:
    built = build_tiny(tiny)
    intake = Intake(built)
    set_budgets(built, budget_for(built, 16))
    assert built.engine.max_model_len == 256
    for number, prompt in enumerate(prompts(8, 60)):
        built.engine.add(intake.request(str(number), prompt, GREEDY))
    built.engine.step()
    before = len(built.engine.scheduler.running)
    set_budgets(built, budget_for(built, 600))
    built.engine.step()
    assert len(built.engine.scheduler.running) == 8 > before
    assert built.engine.max_model_len == 512
    built.engine.add(intake.request("long", prompts(1, 300)[0], GREEDY))
    set_budgets(built, "3500MiB")  # more than at the start: address space is there
    built.close()


def test_what_cannot_be_is_refused_and_changes_nothing(tiny: Path) -> None:
    with LLM(str(tiny), memory="3GiB", structured_output=False) as llm:
        before = llm.stats()["memory"]["total_bytes"]
        with pytest.raises(BudgetError, match=r"nearest budget that can is (\d+)MiB") as error:
            llm.set_budget("64MiB")
        with pytest.raises(ConfigError, match="is not a budget"):
            llm.set_budget("lots")
        assert llm.stats()["memory"]["total_bytes"] == before
        nearest = int(str(error.value).rpartition(" ")[2].removesuffix("MiB")) << 20
        assert llm.set_budget(nearest) == nearest
        assert llm.generate([prompts(1, 30)[0]], GREEDY)[0].error is None


def test_cached_prefixes_give_way_to_other_leases(tiny: Path) -> None:
    """Another owner's lease takes the bytes of idle pages and cached prefixes, not those of running sequences."""
    built = build_tiny(tiny)
    intake = Intake(built)
    for number, prompt in enumerate(prompts(4, 100)):
        built.engine.add(intake.request(str(number), prompt, GREEDY))
    while built.engine.has_work:
        built.engine.step()
    cached = built.ledger.leased_by("kv")
    assert cached > 0
    lease = built.ledger.lease("weights", built.ledger.free_bytes + cached // 2, "another model", priority=REQUIRED)
    assert built.ledger.leased_by("kv") <= cached - cached // 2
    built.audit()
    lease.release()
    built.close()


def test_another_thread_is_given_way_between_steps(tiny: Path) -> None:
    async def scene() -> None:
        async with AsyncLLM(str(tiny), memory="3GiB", structured_output=False) as llm:
            long = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)  # all four are seen running
            first = asyncio.gather(*(llm.generate_one(prompt, long) for prompt in prompts(4, 100)))
            built = llm._built
            while len(built.engine.scheduler.running) < 4:  # or they would have no page to go on with
                assert not first.done(), "all four ended unseen"
                await asyncio.sleep(0.001)
            lease = await asyncio.to_thread(lease_all_that_is_free, built)
            outputs = await first
            assert [output.error for output in outputs] == [None] * len(outputs)
            more = await asyncio.to_thread(lease.resize, lease.num_bytes + built.ledger.leased_by("kv") // 2)
            assert more is None
            lease.release()
            assert await llm.set_budget("2900MiB") == 2900 << 20

    asyncio.run(scene())


def test_the_smaller_of_total_and_host_counts(tiny: Path) -> None:
    for options in ({"memory": "3GiB", "host_memory": "2GiB"}, {"memory": "2GiB", "host_memory": "3GiB"}):
        with LLM(str(tiny), structured_output=False, **options) as llm:
            assert llm.stats()["memory"]["total_bytes"] == 2 << 30
    with pytest.raises(ConfigError, match="device_memory is '1GiB', but this engine runs on the CPU"):
        LLM(str(tiny), device="cpu", device_memory="1GiB")


def test_budgets_of_one_place(tiny: Path, tmp_path: Path) -> None:
    options = {"memory": "3GiB", "structured_output": False}
    with LLM(str(tiny), kv_dir=str(tmp_path), disk="64MiB", **options) as llm:
        assert llm.set_budget(host_memory="2GiB") == 2 << 30
        assert llm.set_budget("2500MiB") == 2 << 30  # memory bounds every place, and so does each place itself
        assert llm.set_budget("1GiB") == 1 << 30
        assert llm.set_budget(host_memory=str(3 << 30)) == 1 << 30
        llm.generate(prompts(6, 200), GREEDY)
        persistence = llm._open().engine.persistence
        assert persistence is not None
        assert persistence.settle(20)
        kept = llm.stats()["disk"]["used_bytes"]
        assert llm.set_budget(disk=kept // 2) == 1 << 30
        found = llm.stats()["disk"]
        assert 0 < found["used_bytes"] <= found["budget_bytes"] == kept // 2
        for wrong in ({"device_memory": "1GiB"}, {"disk": 0}, {"disk": "1000TiB"}, {"disk": 0.5}, {}):
            with pytest.raises(ConfigError):
                llm.set_budget(**wrong)
        with pytest.raises(ConfigError, match="host_memory 'lots' is not a budget"):
            llm.set_budget(host_memory="lots", disk=kept)
        assert llm.stats()["disk"]["budget_bytes"] == kept // 2
    with LLM(str(tiny), **options) as llm, pytest.raises(ConfigError, match="no kv_dir says where"):
        llm.set_budget(disk="1GiB")
