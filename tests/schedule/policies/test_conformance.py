"""What every scheduling policy keeps, over the registry: nobody starves, the same schedule twice, a reason, O(1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import pytest

from pagoda.core.clock import FalseClock
from pagoda.core.errors import ConfigError
from pagoda.schedule.counting import CountingMemory, Stream
from pagoda.schedule.policies import POLICIES, parse_scheduling
from pagoda.schedule.policies.base import SchedulingPolicy
from pagoda.schedule.scheduler import Limits, Scheduler

from ..fakes import Job, Machine

NAMES = POLICIES.names()
every_policy = pytest.mark.parametrize("name", NAMES)


def mixed_jobs(num: int, seed: int = 7, rate: float = 12.0) -> list[Job]:
    """Poisson arrivals of four tenants and four classes, long and short, some with a common beginning."""
    random, now, jobs = Random(seed), 0.0, []
    for _ in range(num):
        now += random.expovariate(rate)
        head = [random.randrange(3)] * 64
        prompt = head + [random.randrange(1000) for _ in range(random.choice((5, 40, 600)))]
        length = random.choice((1, 3, 10, 80))
        jobs.append(Job(now, prompt, length, random.randrange(-1, 3), f"tenant-{random.randrange(4)}"))
    return jobs


@every_policy
def test_every_request_ends_in_a_memory_that_is_too_small(name: str) -> None:
    jobs = mixed_jobs(60)
    machine = Machine(parse_scheduling(name), capacity=1500)
    assert set(machine.run(jobs)) == set(range(60))
    assert machine.memory.num_held == 0
    assert not machine.scheduler.waiting


@every_policy
def test_the_schedule_can_be_repeated(name: str) -> None:
    machines = [Machine(parse_scheduling(name)) for _ in range(2)]
    for machine in machines:
        machine.run(mixed_jobs(40))
    assert machines[0].plans == machines[1].plans


def flooded(policy: SchedulingPolicy) -> bool:
    """A long, unimportant, best effort request of a busy tenant, then 100 s of more work than the machine can do: does
    it end?
    """
    random = Random(3)
    flood = [Job(0.05 * i, [random.randrange(1000) for _ in range(30)], 12, -1, f"t{i % 2}") for i in range(2000)]
    old = Job(5.01, [5] * 600, 100, 2, "t0")
    ends = Machine(policy, limits=Limits(64, 2)).run([*flood, old], until=100.0)
    return len(flood) in ends


def test_a_policy_that_starves_is_found_out() -> None:
    assert not flooded(parse_scheduling("sjf(weight=1e6)"))
    assert not flooded(parse_scheduling("edf(growth=1e6)"))


@every_policy
def test_an_old_request_gets_its_turn_though_better_ranked_ones_never_stop_coming(name: str) -> None:
    policy = parse_scheduling(name)
    assert flooded(policy) is not bool(policy.starves()), policy.starves() or "it starves and does not say so"


@every_policy
def test_what_it_remembers_goes_with_the_requests(name: str) -> None:
    machine = Machine(parse_scheduling(name))
    machine.run(mixed_jobs(40))
    by_sequence = [
        (field, value)
        for field, value in vars(machine.policy).items()
        if isinstance(value, (dict, set)) and any(isinstance(key, int) for key in value)
    ]
    assert by_sequence == []


@every_policy
def test_an_aborted_request_leaves_nothing(name: str) -> None:
    scheduler = Scheduler(Limits(64, 2), parse_scheduling(name), CountingMemory(500), FalseClock())
    items = [Stream(i, 20, i, prompt=[i] * 20, tenant=str(i % 2)) for i in range(6)]
    for item in items:
        scheduler.add(item)
    plan = scheduler.schedule()
    for item in items:
        scheduler.remove(item, completed=False)
        scheduler.remove(item, completed=False)
    scheduler.ended(plan, 0.1)  # the step that ran them ends after they left
    assert not scheduler.waiting
    assert not scheduler.running


@every_policy
def test_it_says_why_a_request_waits(name: str) -> None:
    scheduler = Scheduler(Limits(64, 2), parse_scheduling(name), CountingMemory(100), FalseClock())
    items = [Stream(i, 30, i, prompt=[i] * 30, tenant=str(i % 2)) for i in range(6)]
    for item in items:
        scheduler.add(item)
    scheduler.schedule()
    for item in scheduler.waiting:
        reason = scheduler.why_waiting(item)
        assert 10 < len(reason) < 160
        assert "\n" not in reason


@every_policy
def test_its_order_is_total_and_does_not_depend_on_who_was_added_first(name: str) -> None:
    def order(numbers: list[int]) -> list[int]:
        scheduler = Scheduler(Limits(64, 1), parse_scheduling(name), CountingMemory(4000), FalseClock())
        for i in numbers:
            scheduler.add(Stream(i, 20, 0.0, prompt=[1] * 20))
        return [item.seq_id for item in scheduler.waiting]

    assert order([0, 1, 2, 3]) == order([3, 1, 2, 0]) == [0, 1, 2, 3]


@every_policy
def test_a_priority_counts_or_is_said_not_to(name: str) -> None:
    policy = parse_scheduling(name)
    items = [Stream(i, 20, 0.0, priority, prompt=[1] * 20) for i, priority in enumerate((1, 0))]
    for item in items:
        policy.arrived(item)
    first = min(items, key=policy.rank)
    assert (first.priority == 0) is policy.uses_priority


@every_policy
def test_asking_for_the_next_does_not_look_at_all_that_wait(name: str) -> None:
    """Calls into the policy in one step, at 200 and at 2000 waiting: the same number."""

    def calls(num_waiting: int) -> int:
        policy = parse_scheduling(name)
        scheduler = Scheduler(Limits(64, 4), policy, CountingMemory(100_000), FalseClock())
        for i in range(num_waiting):
            scheduler.add(Stream(i, 20, i, prompt=[i] * 20, tenant=str(i % 4)))
        scheduler.schedule()
        count = 0

        def counting(method):  # type: ignore[no-untyped-def]
            def call(*args):  # type: ignore[no-untyped-def]
                nonlocal count
                count += 1
                return method(*args)

            return call

        for method in ("key", "lane", "lane_rank", "rank", "hold", "may_preempt", "token_budget"):
            setattr(policy, method, counting(getattr(policy, method)))
        scheduler.schedule()
        return count

    assert calls(200) == calls(2000) < 200


@every_policy
def test_bad_parameters_are_refused_by_name(name: str) -> None:
    policy = parse_scheduling(name)
    assert isinstance(policy, SchedulingPolicy)
    with pytest.raises(ConfigError, match=f"{name} has no parameter 'luck'"):
        parse_scheduling(f"{name}(luck=1)")
    for field in dataclasses.fields(policy):
        value = type(getattr(policy, field.name))(-1)
        with pytest.raises(ConfigError, match=name):
            parse_scheduling(f"{name}({field.name}={value!r})")


@every_policy
def test_its_file_names_its_source_or_needs_none(name: str) -> None:
    assert "http" in (POLICIES.module(name).__doc__ or "") or name in ("fcfs", "priority", "sjf", "edf")


def test_published_names_may_be_written_with_hyphens() -> None:
    assert parse_scheduling("past-future(reserve=0.1)") == parse_scheduling("past_future(reserve=0.1)")


@pytest.mark.parametrize("text", ["luck", "fcfs+priority", "sjf(3)", "sjf(weight='x')", ""])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="scheduling|weight"):
        parse_scheduling(text)


def test_the_docs_name_every_policy() -> None:
    page = (Path(__file__).parents[3] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in page] == []
