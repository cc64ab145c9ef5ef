"""Fleets and divisions on made-up machines: what is bought keeps the promise on the very traffic, and no less would."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import replace

import pytest

from pagoda.core.errors import BudgetError, ConfigError
from pagoda.core.types import KVFormat
from pagoda.plan.capacity import (
    Candidate,
    Outcome,
    Router,
    candidates,
    divisions,
    find_fleet,
    fleets,
    keeps,
    needed,
    outcome,
)  # fmt: skip
from pagoda.plan.catalogue import machine_types
from pagoda.plan.fleet import Fleet, Kind, Slo
from pagoda.plan.simulator.cluster import Simulated, simulate
from pagoda.plan.simulator.replica import Replica, Setting
from pagoda.plan.simulator.sequence import Job, Served
from pagoda.schedule.scheduler import Limits

from .test_fleet import Steps

KNOWN = machine_types()
LIMITS = Limits(512, 16)
SLO = Slo(ttft=1.0, tpot=0.05, attainment=0.95)
BURST = [Job(i // 24 * 2.0, range(9000 * i, 9000 * i + 120), 24) for i in range(96)]
"""Twenty-four at once, every two seconds."""


def made(name: str, base: float, token: float, dollars: float, blocks: int = 400) -> Candidate:
    """A machine of so many seconds a step and a token."""
    setting = Setting(KVFormat(1, 1, 8, 8, 16, "bfloat16"), blocks, Steps(base, token), limits=LIMITS)
    return Candidate(Kind(name, setting.cost, 16 * blocks, LIMITS, dollars), setting)


CHEAP, FAST, HOPELESS = made("cheap", 0.02, 4e-4, 1.0), made("fast", 0.005, 1e-4, 3.5), made("slow", 0.2, 1e-3, 0.1)


def served(*token_at: float, at: float = 1.0, error: str = "") -> Served:
    """A request of these times."""
    return Served(at, 10, len(token_at), token_at=array("d", token_at), error=error)


def test_machines_of_the_catalogue_hold_a_model_or_say_why_not() -> None:
    found, left_out = candidates("llama-2-7b", KNOWN, ["l4", "a100-80g"], LIMITS, "sjf", use_prefix=True)
    assert list(found) == ["l4", "a100-80g"]
    assert not left_out
    one = found["l4"]
    assert (one.setting.scheduling, one.setting.use_prefix, one.setting.limits) == ("sjf", True, LIMITS)
    assert (one.kind.name, one.kind.dollars) == ("l4", KNOWN["l4"].dollars_per_hour)
    assert one.kind.capacity_tokens == 16 * one.setting.num_blocks

    box = KNOWN | {"box": replace(KNOWN["l4"], name="box", memory_bytes=3 << 30)}
    found, left_out = candidates("llama-2-7b", box, ["box", "l4"], LIMITS, "fcfs")
    assert (list(found), list(left_out)) == (["l4"], ["box"])
    assert "box" in left_out["box"]
    for names, strict, said in (
        (["abacus"], False, "accepted: "),
        (["box"], False, "no machine"),
        (["box"], True, "box"),
    ):
        with pytest.raises(ConfigError, match=said):
            candidates("llama-2-7b", box, names, LIMITS, "fcfs", strict=strict)


def test_a_promise_is_of_the_first_token_and_of_the_mean_gap() -> None:
    assert keeps(served(2.0, 2.0625, 2.09375), SLO)  # gaps of 62 and 31 ms
    assert not keeps(served(2.001, 2.01), SLO)
    assert not keeps(served(1.5, 1.56), SLO)
    assert keeps(served(2.0), SLO)  # no gaps
    assert not keeps(served(error="longer than the pool"), SLO)


def test_an_outcome_counts_those_that_got_nothing() -> None:
    done = [served(1.1, 1.12), served(1.2, 1.24), served(3.0, 3.1), served(error="too long")]
    found = outcome("some", {"cheap": 2}, 4.0, Simulated(done, 10.0, 0.1, 9, 6, 10, 0.5), SLO)
    assert (found.attained, found.goodput_per_second, found.busy_share) == (0.5, 0.2, 0.5)
    assert found.ttft == pytest.approx({"mean": 2.3 / 3, "p50": 0.2, "p90": 0.2, "p99": 0.2})
    assert found.tpot["mean"] == pytest.approx(0.16 / 3)
    assert found.as_dict()["machines"] == {"cheap": 2}
    nothing = outcome("none", {}, 0.0, Simulated([served(error="no")], 0.0, 0.1, 0, 0, 1, 0.0), SLO)
    assert (nothing.attained, nothing.goodput_per_second, nothing.ttft) == (0.0, 0.0, {})


def test_requests_go_by_the_shares_and_to_the_least_busy_of_a_kind() -> None:
    machines = [Replica(one.setting) for one in (CHEAP, CHEAP, FAST)]
    names = ["cheap", "cheap", "fast"]
    router = Router(Fleet({"cheap": 2, "fast": 1}, {(128, 32): {"cheap": 2 / 3, "fast": 1 / 3}}, 5.5), names)
    chosen = []
    for job in BURST[:12]:
        machine = router(job, machines)
        machine.add(len(chosen), job, Served(job.at, len(job.prompt), job.num_output))
        chosen.append(machines.index(machine))
    assert Counter(chosen) == {0: 4, 1: 4, 2: 4}
    assert [chosen[i : i + 3].count(2) for i in range(0, 12, 3)] == [1] * 4  # in turn, not the rest at the end


def test_bursts_want_more_machines_than_their_mean_does() -> None:
    told: list[tuple[str, int]] = []
    found = find_fleet("cheap", {"cheap": CHEAP}, BURST, SLO, lambda what, num: told.append((what, num)))
    num = found.machines["cheap"]
    assert num > 1
    assert found.attained >= SLO.attainment
    assert found.dollars_per_hour == num
    tried = list(dict.fromkeys(what for what, _ in told))
    assert tried == [f"cheap: {i} cheap" for i in range(1, num + 1)]  # one more after each that fell short
    fewer = outcome("fewer", {}, 0.0, simulate(BURST, CHEAP.setting, replicas=num - 1), SLO)
    assert fewer.attained < SLO.attainment
    assert needed("cheap", {"cheap": CHEAP, "fast": FAST}, BURST, SLO) == num


def test_the_cheapest_fleet_comes_first_and_what_cannot_is_left_out() -> None:
    found = fleets({"slow": HOPELESS, "cheap": CHEAP, "fast": FAST}, BURST, SLO)
    assert [one.dollars_per_hour for one in found] == sorted(one.dollars_per_hour for one in found)
    assert {"cheap", "fast"} <= {kind for one in found for kind in one.machines}
    assert not any("slow" in one.machines for one in found)
    assert all(one.attained >= SLO.attainment for one in found)
    machines = [tuple(sorted(one.machines.items())) for one in found]
    assert len(set(machines)) == len(machines)  # a mixture of one kind is not told twice
    with pytest.raises(BudgetError, match="slow"):
        fleets({"slow": HOPELESS}, BURST, SLO)


def test_a_fleet_that_never_does_is_given_up() -> None:
    tiny = replace(CHEAP, setting=replace(CHEAP.setting, num_blocks=4))  # which the integer program is not told of
    with pytest.raises(BudgetError, match="promise less"):
        find_fleet("cheap", {"cheap": tiny}, BURST[:24], SLO)


def test_requests_that_come_at_once_are_no_endless_rate() -> None:
    found = find_fleet("cheap", {"cheap": CHEAP}, BURST[:2], SLO)  # 2 in 0 seconds
    assert (found.machines, found.attained) == ({"cheap": 1}, 1.0)


def of_name(found: list[Outcome]) -> dict[str, Outcome]:
    return {one.name: one for one in found}


def test_machines_are_divided_in_every_way() -> None:
    machine = replace(KNOWN["l4"], name="cheap", dollars_per_hour=2.0)
    told: list[str] = []
    three = list(divisions(machine, CHEAP, 3, BURST, SLO, lambda what, _: told.append(what)))
    names = ["alike", "1 for prompts, 2 for answers", "2 for prompts, 1 for answers"]
    assert [one.name for one in three] == list(dict.fromkeys(told)) == names
    assert {one.dollars_per_hour for one in three} == {6.0}
    assert {one.machines["cheap"] for one in three} == {3}

    near, far = (
        of_name(list(divisions(replace(machine, link_gigabytes_per_second=link), CHEAP, 4, BURST, SLO)))
        for link in (25.0, 1e-5)
    )
    assert list(near)[-1] == "in pairs"
    assert near["alike"] == far["alike"]  # whose KV goes nowhere
    for name in ("2 for prompts, 2 for answers", "in pairs"):
        assert far[name].ttft["mean"] + far[name].tpot["mean"] > near[name].ttft["mean"] + near[name].tpot["mean"], name
