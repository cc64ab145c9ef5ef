"""Plans whose KV lies on a disk: when they are offered, what they take and move, and that the engine is as planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pagoda.core.errors import BudgetError
from pagoda.core.types import KVFormat
from pagoda.core.units import GIB, MIB
from pagoda.kv.grammar import parse_policy
from pagoda.plan.choice import Choice
from pagoda.plan.demand import Demand
from pagoda.plan.far import Disk, FarKV, FarSteps
from pagoda.plan.kept import Kept
from pagoda.plan.machine import FarCosts
from pagoda.plan.plans import Plan, Planner
from pagoda.plan.prices import PolicyPrice, Prices
from pagoda.plan.subject import Subject
from pagoda.plan.work import StepModel, Work
from tests.plan.public_shapes import config_of

from .test_plans import MACHINE

FMT = KVFormat(num_layers=4, num_kv_heads=2, k_dim=64, v_dim=64, page_size=16, dtype="bfloat16")
PRICES = Prices(
    "x", "llama", 3_000_000, {"int8": 0.001}, {"int8": 0.002}, {}, {"quest(pages=0.1)": PolicyPrice(0.03, 0.0)}
)


def planner(budget: int, disk: int = 100 * GIB, prices: Prices | None = PRICES, **demand: int) -> Planner:
    subject = Subject.of("Qwen2.5-0.5B", config_of("Qwen2.5-0.5B"))
    return Planner(subject, MACHINE, prices, Demand(**demand), budget, Disk(disk, "/a/folder"))


def far_plans(found: list[Plan]) -> dict[str, Plan]:
    return {plan.choice.kv: plan for plan in found if plan.far is not None}


def test_a_disk_is_offered_where_kv_does_not_fit_beside_the_rest() -> None:
    plans = planner(1900 * MIB, prompt=30000, output=100, concurrency=2).plans()
    far = far_plans(plans)
    assert far
    for kv, plan in far.items():
        assert plan.running == 2
        assert plan.accounts.total <= 1900 * MIB
        assert plan.far is not None
        assert plan.far.tier_bytes == 2 * 1882 * plan.far.fmt.block_bytes
        flags = dict(zip(plan.flags[::2], plan.flags[1::2], strict=True))
        assert flags["--kv"] == kv
        assert flags["--kv-offload"] == str(plan.far.tier_bytes)
        assert flags["--kv-offload-dir"] == "/a/folder"
    assert not far_plans(planner(4 * GIB, prompt=3000, output=100, concurrency=2).plans()), "all of it fits"
    with pytest.raises(BudgetError, match=r"one request takes 353 MiB of disk, and 1.00 MiB were given"):
        planner(1900 * MIB, disk=MIB, prompt=30000, output=100).plan(Choice(kv="offload"))


def test_a_request_too_long_for_the_budget_runs_from_the_disk() -> None:
    asked = {"prompt": 30000, "output": 100}
    exact = Choice(max_num_batched_tokens=256)
    assert planner(1900 * MIB, **asked).plan(exact).read_bytes > 0, "its weights would be read at every step instead"
    plan = planner(1900 * MIB, **asked).plan(Choice(kv="offload", max_num_batched_tokens=256))
    assert plan.read_bytes == 0
    near = planner(3 * GIB, **asked).plan(exact)
    assert plan.running == 1
    assert plan.accounts.kv == 0
    assert plan.tpot > near.tpot
    assert plan.far is not None
    assert plan.far.read_bytes == pytest.approx(30050 * plan.far.fmt.bytes_per_token)
    assert plan.tpot >= plan.far.read_bytes * MACHINE.far.read_byte


def test_chosen_pages_move_less_and_their_notes_count() -> None:
    asked, choice = {"prompt": 30000, "output": 100}, Choice(kv="quest(pages=0.1)+offload", max_num_batched_tokens=256)
    plan = planner(2 * GIB, **asked).plan(choice)
    whole = planner(2 * GIB, **asked).plan(Choice(kv="offload", max_num_batched_tokens=256))
    assert plan.far is not None
    assert whole.far is not None
    assert plan.far.read_bytes < 0.03 * whole.far.read_bytes
    assert plan.accounts.kv == 30100 // 16 * FMT.num_kv_heads * 24 * 2 * 64 * 2, "smallest and largest keys, bfloat16"
    assert plan.loss == 0.03
    brief = planner(2 * GIB, prompt=30000, output=2).plan(choice).far
    assert brief is not None
    assert brief.hits < 0.6 * plan.far.hits, "an answer's first step finds nothing in the window"
    tight = planner(1813 * MIB, **asked)
    assert tight.plan(choice).far.hits < plan.far.hits, "a smaller window finds less in it"  # type: ignore[union-attr]


class Second(StepModel):
    def step_seconds(self, decodes: int, slots: float, chunk: int, pairs: float, rows: int) -> float:
        return 1.0


def test_a_step_computes_or_waits_for_the_disk() -> None:
    kept = Kept.of(parse_policy("offload"), FMT, Demand(992, 8))
    far = FarKV.of(FMT, kept, 1008, 2, 0)
    assert far.window_bytes == FMT.block_bytes, "what there is; the planner asks for three heads"
    assert FarKV.least_window_bytes(FMT, 1008) == 24 * FMT.block_bytes, "189 pages, and blocks have eight"
    far = FarKV.of(FMT, kept, 1008, 2, 24 * FMT.block_bytes)
    assert far.groups == 4, "two heads of two sequences, each alone"
    costs = FarCosts(layer=0.01, group=0.001, choose=0.5, page=0.01, read=0.1, read_byte=1e-12, copy=1e-9)
    work = Work(decodes=2, context=996, rows=2)
    moved = 2 * 996 * FMT.bytes_per_token
    slowly = replace(costs, read_byte=1e-3)
    fast, slow = (FarSteps(Second(), far, one, selects=False).seconds(work) for one in (costs, slowly))
    reads = 2 * 996 / 16 * 8 / 64
    assert fast == pytest.approx(reads * 0.1, rel=1e-4)
    quick = FarSteps(Second(), far, replace(costs, read=0.0), selects=False).seconds(work)
    assert quick == pytest.approx(1.0 + 4 * (0.01 + 4 * 0.001) + moved * 1e-9)
    chosen = FarSteps(Second(), replace(far, hits=0.5), costs, selects=True).seconds(work)
    asked = reads * 64
    assert chosen == pytest.approx(1.0 + 4 * 2 * 0.5 + asked * 0.01 + moved / 2 * 1e-9 + asked / 2 * 0.1, rel=1e-6)
    assert slow == pytest.approx(moved / 1000 + reads * 0.1)
    chunk = FarSteps(Second(), far, slowly, selects=False).seconds(Work(chunk=256, start=512))
    assert chunk == pytest.approx(512 * FMT.bytes_per_token / 1000 + 512 / 16 * 8 / 64 * 0.1)


@pytest.mark.parametrize("kv", ["offload", "quest(pages=0.1)+offload"])
def test_the_engine_leases_what_was_planned(tmp_path: Path, kv: str) -> None:
    """Its peak, answering from the disk what the budget had no room for."""
    from pagoda import LLM, SamplingParams
    from pagoda.models.catalog import folder_of, read_config

    subject = Subject.of("lantern", read_config("lantern"), folder=folder_of("lantern"))
    demand = Demand(prompt=1500, output=20, concurrency=2)
    plans = Planner(subject, MACHINE, PRICES, demand, GIB, Disk(64 * MIB, str(tmp_path)))
    plan = plans.plan(Choice(kv=kv, max_num_batched_tokens=256))
    options: dict[str, Any] = {
        name.removeprefix("--").replace("-", "_"): int(value) if value.isdigit() else value
        for name, value in zip(plan.flags[::2], plan.flags[1::2], strict=True)
    }
    assert options.pop("memory") == GIB
    with LLM("lantern", memory="3GiB", enable_prefix_caching=False, **options) as llm:
        prompts = [[3 + (seed * at) % 90 for at in range(1500)] for seed in (3, 7)]
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
        memory, moved = llm.stats()["memory"], llm.stats()["kv"]["offload"]
    accounts = memory["accounts"]
    assert accounts["staging"]["leased_bytes"] == plan.accounts.staging
    assert plan.far is not None
    assert moved["tier_bytes"] == plan.far.tier_bytes
    assert accounts["kv"]["leased_bytes"] == 0
    assert accounts["policies"]["leased_bytes"] <= plan.accounts.kv <= 0.02 * plan.accounts.total
    assert moved["written_bytes"] > 2 * 1500 * plan.far.fmt.bytes_per_token
