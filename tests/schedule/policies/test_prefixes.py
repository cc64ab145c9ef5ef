"""The tree of prompts, and the policies that keep equal beginnings together, over the real pool and prefix cache."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from pagoda.plan.simulator.cluster import simulate
from pagoda.plan.simulator.replica import Setting
from pagoda.plan.simulator.sequence import Job, Served
from pagoda.schedule.counting import Stream
from pagoda.schedule.policies import parse_scheduling
from pagoda.schedule.policies._prefixes import PromptTree
from pagoda.schedule.scheduler import Limits
from tests.plan.simulator.fakes import FMT, Linear

PURE = "dlpm(quantum=1000000000, window=1000000)"


def run(name: str, jobs: list[Job], blocks: int = 60, seats: int = 4) -> list[Served]:
    return simulate(jobs, Setting(FMT, blocks, Linear(), name, Limits(256, seats))).served


def cached(served: list[Served]) -> int:
    return sum(s.num_cached for s in served)


def questions(documents: int = 12, each: int = 5, tenants: int = 1) -> list[Job]:
    """Each document of 128 tokens is asked about ``each`` times, in turn: more than the cache of 60 blocks holds."""
    random = Random(2)
    return [
        Job(0.001 * i, [i % documents + 1] * 128 + [random.randrange(1000) for _ in range(20)], 4, f"t{i % tenants}")
        for i in range(documents * each)
    ]


def test_the_tree_knows_what_is_shared_and_forgets_who_left() -> None:
    tree = PromptTree(4)
    items = [Stream(i, len(p), prompt=p) for i, p in enumerate(([1] * 9, [1] * 4 + [2] * 5, [3] * 9))]
    for item in items:
        tree.add(item)
    assert tree.num_tokens(tree.group(items[0])) == 4 + 4 + 4 + 1 + 1
    assert [(node.depth, other) for node, other in tree.lead(items[0])] == [(1, items[1])]
    assert tree.lead(items[0]) == []  # told once
    assert tree.warm_tokens(items[1]) == 4
    assert tree.leader_at(items[1], 0) is items[0]
    assert tree.leader_at(items[1], 4) is None  # it is there already
    items[0].num_computed = 4
    assert tree.leader_at(items[1], 0) is None
    for item in items:
        tree.remove(item)
    assert not any(vars(tree)[name] for name in ("_roots", "_of"))


def test_other_salts_share_nothing() -> None:
    tree = PromptTree(4)
    items = [Stream(i, 9, prompt=[1] * 9, salt=str(i)) for i in range(2)]
    for item in items:
        tree.add(item)
    assert tree.lead(items[0]) == []


@pytest.mark.parametrize("name", ["batchllm", PURE, "dlpm"])
def test_a_beginning_is_computed_about_once_where_order_allows(name: str) -> None:
    jobs = questions()
    most = 48 * 128  # four of five
    assert cached(run("fcfs", jobs)) < 0.3 * most
    assert cached(run(name, jobs)) > 0.9 * most


def test_nested_beginnings_are_walked_depth_first() -> None:
    """Two systems, three documents under each, three questions on each document; arrivals shuffled."""
    prompts = [[s] * 64 + [10 + d] * 64 + [100 + q] * 8 for s in (1, 2) for d in range(3) for q in range(3)]
    Random(4).shuffle(prompts)
    served = run("batchllm", [Job(0.0, prompt, 2) for prompt in prompts], blocks=30, seats=1)
    starts = sorted(range(18), key=lambda i: served[i].token_at[0])
    for depth, changes in ((0, 1), (64, 5)):
        beginnings = [tuple(prompts[i][: depth + 1]) for i in starts]
        assert sum(a != b for a, b in pairwise(beginnings)) == changes


def test_fair_shares_keep_nearly_all_the_hits_of_pure_longest_match() -> None:
    jobs = questions(each=10, tenants=3)
    assert cached(run("dlpm(quantum=2000)", jobs)) >= 0.9 * cached(run(PURE, jobs)) > 0


def test_a_match_that_was_evicted_meanwhile_does_not_count() -> None:
    policy = parse_scheduling("dlpm")
    found = {1: 64, 2: 32}
    policy.bind(lambda item: found[item.seq_id])
    long, short = (Stream(i, 200, 0.1 * i, prompt=[i] * 200) for i in (1, 2))
    for item in (long, short):
        policy.arrived(item)
    assert policy.key(long) < policy.key(short)
    found[1] = 0
    assert policy.is_stale(long)
    assert not policy.is_stale(long)
    assert policy.key(short) < policy.key(long)
