"""The simulator: time by the cost alone, bytes by the real pool, the orderings that the papers report."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from pagoda.core.errors import ConfigError
from pagoda.kv.audit import audit
from pagoda.plan.simulator.cluster import simulate
from pagoda.plan.simulator.memory import PagedMemory
from pagoda.plan.simulator.replica import Replica, Setting
from pagoda.plan.simulator.sequence import BlockPrompt, Job, Served
from pagoda.schedule.policies import POLICIES
from pagoda.schedule.scheduler import Limits

from .fakes import FMT, Linear


def setting(scheduling: str = "fcfs", blocks: int = 200, **limits: int) -> Setting:
    allowed = Limits(**{"max_num_batched_tokens": 64, "max_num_seqs": 8} | limits)
    return Setting(FMT, blocks, Linear(), scheduling, allowed)


def test_one_request_takes_what_its_steps_cost() -> None:
    done = simulate([Job(1.0, range(100), 3)], setting())
    (record,) = done.served
    assert list(record.token_at) == pytest.approx([1.0 + 0.074 + 0.046, 1.131, 1.142])
    assert (done.num_steps, done.num_tokens) == (4, 102)
    assert done.seconds == pytest.approx(1.142)


def test_the_same_jobs_give_the_same_times() -> None:
    jobs = [Job(0.05 * i, [i % 3] * 40 + list(range(i, i + 20)), 1 + i % 7, f"t{i % 2}") for i in range(40)]
    for name in ("fcfs", "past_future", "dlpm"):
        runs = [simulate(jobs, setting(name, blocks=14)).served for _ in range(2)]
        assert [r.token_at for r in runs[0]] == [r.token_at for r in runs[1]]
        assert [len(r.token_at) for r in runs[0]] == [job.num_output for job in jobs]


def test_prefixes_are_found_and_the_pool_balances() -> None:
    head = list(range(64))
    replica = Replica(replace(setting(), count_pages=False))
    served = [Served(0.0, 70, 2) for _ in range(2)]
    replica.add(0, Job(0.0, [*head, 1, 2, 3, 4, 5, 6], 2), served[0])
    replica.run_until(10.0)
    replica.add(1, Job(10.0, [*head, 9, 9, 9, 9, 9, 9], 2), served[1])
    replica.run_until(20.0)
    assert [s.num_cached for s in served] == [0, 64]
    assert replica.clock.now() == 20.0
    memory = replica.memory
    assert isinstance(memory, PagedMemory)
    assert memory.manager.stats().num_sequences == 0
    audit(memory.manager)


def test_what_can_never_fit_is_refused_and_the_rest_goes_on() -> None:
    done = simulate([Job(0.0, range(4000), 1), Job(0.0, range(20), 2)], setting(blocks=100))
    assert "4001 tokens, and the KV holds 1600" in done.served[0].error
    assert len(done.served[1].token_at) == 2


def test_replicas_share_the_load() -> None:
    jobs = [Job(0.0, range(60), 20) for _ in range(16)]
    one, four = (simulate(jobs, setting(max_num_seqs=2), replicas=n).seconds for n in (1, 4))
    assert four < one / 3
    with pytest.raises(ConfigError, match="replicas is 0"):
        simulate(jobs, setting(), replicas=0)


def traffic(seed: int, num: int = 60) -> list[Job]:
    """Some prompts begin alike; three tenants, two priorities, bursts."""
    random, jobs, now = Random(seed), list[Job](), 0.0
    heads = [[random.randrange(1000) for _ in range(80)] for _ in range(4)]
    for i in range(num):
        now += random.expovariate(3 + 2 * seed)
        head = random.choice(heads)[: random.randrange(80)] if random.random() < 0.6 else []
        prompt = head + [random.randrange(1000) for _ in range(random.randrange(1, 90))]
        jobs.append(Job(now, prompt, random.randrange(1, 60), f"t{i % 3}", i % 2))
    return jobs


@pytest.mark.parametrize("name", POLICIES.names())
def test_steps_at_once_and_counted_pages_change_nothing(name: str) -> None:
    """Against one step at a time on the real pool: every token at the same time, to the last bit."""
    for seed, blocks, use_prefix, replicas in (
        (0, 16, True, 1),
        (1, 16, False, 1),
        (2, 60, True, 2),
        (3, 60, False, 2),
    ):
        fast = replace(setting(name, blocks), cost=Linear(1e-6), use_prefix=use_prefix)
        slow = replace(fast, jump=False, count_pages=False)
        one, other = (simulate(traffic(seed), s, replicas=replicas) for s in (fast, slow))
        assert [r.token_at for r in one.served] == [r.token_at for r in other.served]
        assert [r.num_preemptions for r in one.served] == [r.num_preemptions for r in other.served]
        assert [r.num_cached for r in one.served] == [r.num_cached for r in other.served]
        assert (one.num_steps, one.num_tokens, one.busy_share) == (other.num_steps, other.num_tokens, other.busy_share)


@pytest.mark.parametrize("name", ["fcfs", "past_future", "dlpm", "fastserve"])
def test_long_prompts_of_named_blocks_at_once_change_nothing(name: str) -> None:
    """Prompts of many chunks that share blocks in a pool that is too small: names of blocks against tokens, whole steps
    against one by one. The last block of a prompt may be in part the answer's.
    """
    random, jobs, now = Random(1), list[Job](), 0.0
    for i in range(50):
        now += random.expovariate(1.2)
        first = random.choice((0, 100, 200))
        blocks = [*range(first, first + random.randrange(25)), 1000 * (i % 40) + 7]
        prompt = BlockPrompt(blocks, 16, 16 * len(blocks) - random.randrange(16))
        jobs.append(Job(now, prompt, random.randrange(1, 50), f"t{i % 3}"))
    fast = replace(setting(name, 60), cost=Linear(1e-6))
    runs = [simulate(jobs, s) for s in (fast, replace(fast, jump=False, count_pages=False))]
    assert [r.token_at for r in runs[0].served] == [r.token_at for r in runs[1].served]
    assert [r.num_cached for r in runs[0].served] == [r.num_cached for r in runs[1].served]
    assert sum(r.num_cached for r in runs[0].served) > 2000
    assert runs[0].num_steps == runs[1].num_steps


def test_steps_at_once_are_rarely_scheduled() -> None:
    """One sequence of 200 tokens: a prompt, a first decode, a few looks ahead, the end."""
    replica, calls = Replica(setting()), list[int]()
    schedule = replica.scheduler.schedule

    def counted():  # type: ignore[no-untyped-def]
        calls.append(1)
        return schedule()

    replica.scheduler.schedule = counted  # type: ignore[method-assign]
    replica.add(0, Job(0.0, range(10), 200), Served(0.0, 10, 200))
    replica.run_until(float("inf"))
    assert replica.num_steps == 200
    assert len(calls) < 12


def test_the_orderings_of_the_papers_hold() -> None:
    """Overload with answers that the prompt foretells: sjf waits less than fcfs; looking ahead preempts less."""
    random = Random(4)
    jobs = []
    for i in range(400):
        is_long = random.random() < 0.3
        jobs.append(Job(0.08 * i, range(i * 1000, i * 1000 + (120 if is_long else 30)), 150 if is_long else 10))
    waits = {}
    for name in ("fcfs", "sjf"):
        done = simulate(jobs, setting(name, blocks=400))
        waits[name] = sum(r.token_at[-1] - r.at for r in done.served) / len(jobs)
    assert waits["sjf"] < waits["fcfs"] / 1.5
    preemptions = {}
    for name in ("fcfs", "past_future"):
        done = simulate(jobs, setting(name, blocks=40, max_num_seqs=32))
        preemptions[name] = sum(r.num_preemptions for r in done.served)
    assert preemptions["fcfs"] > 20
    assert preemptions["past_future"] <= preemptions["fcfs"] / 5
