"""The real engine under a trace: lengths of the trace, a cold cache for each policy, service counted right."""

from __future__ import annotations

from array import array

import pytest
from benchmarks.scheduling_traces import Oracle, service_gap

from pagoda.bench.replay import Replayed, ReplayEngine
from pagoda.bench.traces import Arrival
from pagoda.plan.simulator.sequence import Served
from pagoda.schedule.policies import parse_scheduling


@pytest.fixture(scope="module")
def engine():  # type: ignore[no-untyped-def]
    with ReplayEngine("lantern", memory="4GiB", structured_output=False, max_model_len=128, num_threads=1) as engine:
        yield engine


def test_answers_have_the_lengths_of_the_trace_under_every_policy_in_turn(engine: ReplayEngine) -> None:
    arrivals = [Arrival(i, 0.001 * i, 20 + i, 1 + i % 4, f"t{i % 2}", blocks=(0, -1 - i), block=16) for i in range(6)]
    for name in ("fcfs", "dlpm", "fcfs"):
        done = engine.run(arrivals, parse_scheduling(name))
        served = sorted(done.served, key=lambda r: r.at)
        assert [r.num_output for r in served] == [len(r.token_at) for r in served] == [a.num_output for a in arrivals]
        assert all(r.at <= at <= r.token_at[0] for r, at in zip(done.served, done.admitted_at, strict=True))
        assert max(r.num_cached for r in served) <= 16  # from this run, nothing from the one before
    assert not engine.engine.has_work


def test_an_oracle_knows_what_the_others_must_guess(engine: ReplayEngine) -> None:
    arrivals = [Arrival(0, 0.0, 20, 5), Arrival(1, 0.0, 20, 2)]
    oracle = Oracle({tuple(p): a.num_output for a, p in engine.with_prompts(arrivals)})

    class Item:
        prompt = engine.with_prompts(arrivals)[1][1]

    assert oracle.quantile(Item(), 0.5) == 2


def test_the_gap_counts_only_while_both_wait() -> None:
    def served(tenant: str, *at: float) -> Served:
        return Served(0.0, 10, len(at), tenant, token_at=array("d", at))

    records = [served("a", 1.0, 2.0, 3.0), served("b", 4.0)]
    both, one = frozenset("ab"), frozenset("a")

    def gap(*waiting: tuple[float, frozenset[str]]) -> float:
        return service_gap(Replayed(records, [0.5, 3.5], list(waiting), 0, 5.0, 4), "a", "b")

    assert gap((0.0, both), (2.5, both), (5.0, both)) == 10 + 2 * 2  # the prompt and two tokens; then b catches up
    assert gap((0.0, one), (2.5, one), (3.2, one)) == 0
    assert gap((0.0, one), (1.5, both), (3.2, both)) == 2 + 2  # from the first look at which both waited
