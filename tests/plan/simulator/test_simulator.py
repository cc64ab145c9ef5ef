"""The simulator: time by the cost alone, bytes by the real pool, the orderings that the papers report."""

from __future__ import annotations

from random import Random

import pytest

from pagoda.core.errors import ConfigError
from pagoda.kv.audit import audit
from pagoda.plan.simulator.cluster import simulate
from pagoda.plan.simulator.cost import DEVICES, MODELS, LinearCost, kv_blocks, pick, roofline
from pagoda.plan.simulator.replica import Job, Replica, Served, Setting
from pagoda.schedule.item import Scheduled
from pagoda.schedule.scheduler import Limits

FMT = MODELS["llama-2-7b"].kv_format(16)
COST = LinearCost(base=0.01, floor=0.0, token=0.001, slot=0.0, pair=0.0)


def setting(scheduling: str = "fcfs", blocks: int = 200, cost: LinearCost = COST, **limits: int) -> Setting:
    return Setting(FMT, blocks, cost, scheduling, Limits(**{"max_num_batched_tokens": 64, "max_num_seqs": 8} | limits))


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
    replica = Replica(setting())
    served = [Served(0.0, 70, 2) for _ in range(2)]
    replica.add(0, Job(0.0, [*head, 1, 2, 3, 4, 5, 6], 2), served[0])
    replica.run_until(10.0)
    replica.add(1, Job(10.0, [*head, 9, 9, 9, 9, 9, 9], 2), served[1])
    replica.run_until(20.0)
    assert [s.num_cached for s in served] == [0, 64]
    assert replica.clock.now() == 20.0
    assert replica.memory.manager.stats().num_sequences == 0
    audit(replica.memory.manager)


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


def test_the_cost_of_a_step_is_the_larger_of_weights_and_arithmetic_and_the_kv() -> None:
    cost = LinearCost(base=1.0, floor=5.0, token=0.1, slot=0.01, pair=0.001)

    class _Any:
        pass

    item = _Any()
    decode, chunk = Scheduled(item, 100, 1), Scheduled(item, 10, 100)  # type: ignore[arg-type]
    assert cost.seconds([decode]) == pytest.approx(1 + 5 + 1.0)
    assert cost.seconds([decode, chunk]) == pytest.approx(1 + 10.1 + 1.1 + 0.001 * 100 * 60)


def test_an_a100_has_about_the_published_speed() -> None:
    """7B weights at 16 bit: 13.5 GB at 1.6 TB/s is 8 ms a step; 14 thousand prompt tokens a second."""
    device, model = pick("device", DEVICES, "a100-80g"), pick("model", MODELS, "llama-2-7b")
    cost = roofline(device, model)
    assert 0.008 < cost.floor < 0.009
    assert 1 / cost.token == pytest.approx(13_900, rel=0.01)
    assert kv_blocks(device, model, 16) * 16 == pytest.approx(111_000, rel=0.02)
    with pytest.raises(ConfigError, match="accepted: a100-80g"):
        pick("device", DEVICES, "abacus")


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
