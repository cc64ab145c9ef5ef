"""The scheduler on its own: order, budgets, chunks, preemption, with a memory that only counts."""

from __future__ import annotations

import pytest

from pagoda.core.clock import FalseClock
from pagoda.core.errors import ConfigError
from pagoda.schedule.counting import CountingMemory, Stream
from pagoda.schedule.policies import POLICIES
from pagoda.schedule.scheduler import Limits, Scheduler


def make(capacity: int = 10_000, tokens: int = 64, seqs: int = 8, policy: str = "fcfs", **cached: int) -> Scheduler:
    memory = CountingMemory(capacity, {int(k[1:]): v for k, v in cached.items()})
    return Scheduler(Limits(tokens, seqs), POLICIES.get(policy)(), memory, FalseClock())  # type: ignore[operator]


def run(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """One step: what ran, with every sequence that became complete growing by one sampled token."""
    plan = scheduler.schedule()
    ran = []
    for s in plan.scheduled:
        ran.append((s.item.seq_id, s.start, s.num_tokens))
        s.item.num_computed += s.num_tokens  # type: ignore[misc]
        if s.item.num_computed == s.item.num_tokens:
            s.item.num_tokens += 1  # type: ignore[misc]
    return ran


def test_a_long_prompt_is_cut_into_chunks_and_decodes_go_first() -> None:
    scheduler = make(tokens=10, seqs=4)
    scheduler.add(Stream(1, 5))
    assert run(scheduler) == [(1, 0, 5)]
    scheduler.add(Stream(2, 25, arrival=1))
    assert run(scheduler) == [(1, 5, 1), (2, 0, 9)]
    assert run(scheduler) == [(1, 6, 1), (2, 9, 9)]
    assert run(scheduler) == [(1, 7, 1), (2, 18, 7)]
    assert run(scheduler) == [(1, 8, 1), (2, 25, 1)]


def test_several_prompts_share_a_step() -> None:
    scheduler = make(tokens=20)
    for seq_id in (1, 2, 3):
        scheduler.add(Stream(seq_id, 8, arrival=seq_id))
    assert run(scheduler) == [(1, 0, 8), (2, 0, 8), (3, 0, 4)]
    assert run(scheduler) == [(1, 8, 1), (2, 8, 1), (3, 4, 4)]


def test_seats_are_limited() -> None:
    scheduler = make(seqs=2)
    items = [Stream(i, 4, arrival=i) for i in range(3)]
    for item in items:
        scheduler.add(item)
    assert [seq for seq, _, _ in run(scheduler)] == [0, 1]
    assert scheduler.why_waiting(items[2]) == "all 2 seats are taken"
    assert scheduler.why_waiting(items[0]) == "it is running"
    scheduler.remove(items[0])
    assert sorted(seq for seq, _, _ in run(scheduler)) == [1, 2]


def test_cached_tokens_are_not_computed_again() -> None:
    scheduler = make(_7=16)
    scheduler._memory.cached = {7: 16}  # type: ignore[attr-defined]
    scheduler.add(Stream(7, 20))
    assert run(scheduler) == [(7, 16, 4)]


def test_the_last_comer_is_preempted_and_starts_again() -> None:
    scheduler = make(capacity=20, tokens=32)
    first, second = Stream(1, 8, arrival=0), Stream(2, 9, arrival=1)
    scheduler.add(first)
    scheduler.add(second)
    run(scheduler)
    while first.num_tokens < 12:
        run(scheduler)
    assert scheduler.num_preemptions == 1
    assert second.num_computed == 0
    assert scheduler.waiting.head() is second
    assert "does not fit" in scheduler.why_waiting(second)
    scheduler.remove(first)
    assert run(scheduler) == [(2, 0, second.num_tokens - 1)]


def test_a_victim_that_was_already_chosen_leaves_the_step_and_its_tokens_come_back() -> None:
    scheduler = make(capacity=30, tokens=20, seqs=4)
    old, new = Stream(1, 20, arrival=0), Stream(2, 4, arrival=1)
    scheduler.add(new)
    run(scheduler)
    scheduler.add(old)
    run(scheduler)  # old gets its first chunk: it ranks before new
    while scheduler.num_preemptions == 0:
        ran = run(scheduler)
    assert [seq for seq, _, _ in ran] == [1]
    assert new.num_computed == 0


def test_priority_takes_the_pages_of_a_lower_class_and_fcfs_does_not() -> None:
    for policy, preempted in (("fcfs", 0), ("priority", 1)):
        scheduler = make(capacity=20, policy=policy)
        scheduler.add(Stream(1, 15, arrival=0, priority=5))
        run(scheduler)
        scheduler.add(Stream(2, 15, arrival=1, priority=1))
        run(scheduler)
        assert scheduler.num_preemptions == preempted


def test_priority_orders_the_queue() -> None:
    scheduler = make(seqs=1, policy="priority")
    for seq_id, priority in ((1, 3), (2, 1), (3, 2)):
        scheduler.add(Stream(seq_id, 4, arrival=seq_id, priority=priority))
    assert [item.seq_id for item in scheduler.waiting] == [2, 3, 1]
    last = list(scheduler.waiting)[-1]
    assert "class 3" in scheduler.why_waiting(last)


def test_nobody_starves_under_fcfs_in_a_small_memory() -> None:
    scheduler = make(capacity=24, tokens=8, seqs=6)
    items = [Stream(i, 3 + (7 * i) % 11, arrival=i) for i in range(20)]
    wanted = {item.seq_id: item.num_tokens + 6 for item in items}
    for item in items:
        scheduler.add(item)
    done: list[int] = []
    for _ in range(2000):
        run(scheduler)
        for item in items:
            if item.seq_id not in done and item.num_tokens >= wanted[item.seq_id]:
                done.append(item.seq_id)
                scheduler.remove(item)
    assert sorted(done) == list(range(20))


def test_idle_holders_give_way_when_nothing_else_can_run() -> None:
    scheduler = make(capacity=10)
    idle, waiting = Stream(1, 8, arrival=0), Stream(2, 8, arrival=1)
    scheduler.add(idle)
    scheduler.schedule()
    idle.num_computed = 8  # complete, and nobody gives it another token (a beam that waits for its sibling)
    scheduler.add(waiting)
    plan = scheduler.schedule()
    assert plan.scheduled == []
    assert plan.preempted == [idle]
    assert [s.item for s in scheduler.schedule().scheduled] == [waiting]
    assert len(scheduler.waiting) == 0  # the idle one wants no pages before it has something to compute
    idle.num_tokens += 1
    scheduler.wake(idle)
    scheduler.wake(waiting)
    assert scheduler.waiting.head() is idle


def test_a_parked_item_can_end() -> None:
    scheduler = make(capacity=10)
    idle, waiting = Stream(1, 8, arrival=0), Stream(2, 8, arrival=1)
    scheduler.add(idle)
    scheduler.schedule()
    idle.num_computed = 8
    scheduler.add(waiting)
    scheduler.schedule()
    scheduler.remove(idle)
    scheduler.wake(idle)
    assert list(scheduler.waiting) == [waiting]


def test_a_fork_runs_at_once_if_there_is_a_seat() -> None:
    scheduler = make(seqs=1)
    assert scheduler.add_running(Stream(1, 4))
    assert not scheduler.add_running(Stream(2, 4))


def test_removal_from_the_middle_of_the_queue() -> None:
    scheduler = make(seqs=1)
    items = [Stream(i, 4, arrival=i) for i in range(4)]
    for item in items:
        scheduler.add(item)
    scheduler.remove(items[2])
    scheduler.remove(items[2])
    assert [item.seq_id for item in scheduler.waiting] == [0, 1, 3]
    assert scheduler.waiting.position(items[3]) == 2
    assert scheduler.waiting.position(items[2]) is None
    assert scheduler.policy.explain(items[3], 2) == "2 earlier requests wait before it"


@pytest.mark.parametrize(("tokens", "seqs"), [(4, 8), (8, 0)])
def test_limits_that_would_stall_a_decode_are_refused(tokens: int, seqs: int) -> None:
    with pytest.raises(ConfigError, match="max_num"):
        Limits(tokens, seqs)
