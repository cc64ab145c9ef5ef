"""What each policy is there for, shown on a small machine whose every step is computed."""

from __future__ import annotations

import itertools
from random import Random
from statistics import mean

import pytest

from pagoda.schedule.counting import Stream
from pagoda.schedule.item import Scheduled
from pagoda.schedule.policies import parse_scheduling
from pagoda.schedule.policies.base import Room
from pagoda.schedule.policies.past_future import peak_slots
from pagoda.schedule.scheduler import Limits

from ..fakes import Job, Machine

RANDOM = Random(11)


def prompt(num: int) -> list[int]:
    return [RANDOM.randrange(1, 1000) for _ in range(num)]


def mean_latency(machine: Machine, jobs: list[Job]) -> float:
    ends = machine.run(jobs)
    return mean(ends[number] - job.arrival for number, job in enumerate(jobs))


def overload(num: int = 240, seed: int = 5) -> list[Job]:
    """Answers that the prompt's length and last token foretell: one in four is long."""
    random, now, jobs = Random(seed), 0.0, []
    for _ in range(num):
        now += random.expovariate(20)
        is_long = random.random() < 0.25
        head = [random.randrange(10, 1000) for _ in range(48 if is_long else 16)]
        jobs.append(Job(now, [*head, 2 if is_long else 1], 120 if is_long else 8))
    return jobs


@pytest.mark.parametrize("name", ["sjf", "learning_to_rank", "fastserve(quantum=4)"])
def test_short_answers_first_cut_mean_latency_under_overload(name: str) -> None:
    limits = Limits(128, 4)
    fcfs = mean_latency(Machine(parse_scheduling("fcfs"), limits=limits), overload())
    assert mean_latency(Machine(parse_scheduling(name), limits=limits), overload()) < fcfs / 1.5


def gaps(machine: Machine, job: int) -> list[float]:
    """Seconds between the steps in which the job took part."""
    times, now = [], 0.0
    for plan in machine.plans:
        now += machine.base + machine.slope * sum(n for _, n in plan)
        if any(number == job for number, _ in plan):
            times.append(now)
    return [after - before for before, after in itertools.pairwise(times)]


def test_chunks_beside_decodes_do_not_stall_a_stream_as_whole_prompts_do() -> None:
    jobs = [Job(0.0, prompt(20), 200), *(Job(0.5 + i * 0.3, prompt(2000), 2) for i in range(8))]
    stalls = {}
    for name in ("prefill_first", "sarathi_serve(tbt=0.03, first=64)", "deepspeed_fastgen(tokens=128)"):
        machine = Machine(parse_scheduling(name), capacity=50_000, limits=Limits(2048, 16))
        machine.run(jobs)
        stalls[name.partition("(")[0]] = max(gaps(machine, 0))
    assert stalls["prefill_first"] > 0.2
    assert stalls["sarathi_serve"] < stalls["prefill_first"] / 3
    assert stalls["deepspeed_fastgen"] < stalls["prefill_first"] / 3


def test_sarathi_finds_the_tokens_that_its_target_allows() -> None:
    policy = parse_scheduling("sarathi_serve(tbt=0.05)")
    item = Stream(1, 100)
    policy.arrived(Stream(2, 10_000))  # more than could be spread
    for tokens in (20, 300, 100, 250, 40, 180):
        policy.ran([Scheduled(item, 0, tokens)], 0.01 + 0.0002 * tokens)
    assert policy.token_budget(4, 2048) == pytest.approx(200, abs=2)
    assert policy.token_budget(500, 2048) == 516  # decodes come first, and prompts go on


def test_sarathi_spreads_a_prompt_that_comes_alone() -> None:
    """A stream's longest gap, and when the prompt has its first token: as soon as can be, or within ``ttft``."""
    jobs = [Job(0.0, prompt(20), 200), Job(1.0, prompt(600), 2)]
    found = {}
    for ttft in (0.0, 0.5):
        machine = Machine(parse_scheduling(f"sarathi_serve(tbt=0.1, ttft={ttft}, first=64)"), limits=Limits(2048, 16))
        found[ttft] = machine.run(jobs)[1] - 1.0, max(gaps(machine, 0))
    assert found[0.0][0] < 0.3 < found[0.5][0] < 0.6
    assert found[0.5][1] < 0.6 * found[0.0][1]


def test_fastgen_steps_are_equally_wide_while_there_is_work() -> None:
    machine = Machine(parse_scheduling("deepspeed_fastgen(tokens=100)"), limits=Limits(2048, 8))
    machine.run([Job(0.0, prompt(n), 5) for n in (350, 30, 70, 250)])
    widths = [sum(n for _, n in plan) for plan in machine.plans]
    assert widths[:7] == [100] * 7
    assert max(widths) == 100


def test_the_peak_of_what_is_held_to_the_end() -> None:
    """The formula against a loop that lets time pass."""
    random = Random(2)
    for _ in range(50):
        held = [(random.randrange(1, 50), random.randrange(1, 50)) for _ in range(random.randrange(1, 8))]
        curve = [sum(tokens + t for tokens, left in held if t <= left) for t in range(51)]
        assert peak_slots((tokens, left, tokens + left) for tokens, left in held) == max(curve)
        budget = random.randrange(50, 70)  # a KV policy that never holds more
        curve = [sum(min(tokens + t, budget) for tokens, left in held if t <= left) for t in range(51)]
        assert peak_slots((tokens, left, min(tokens + left, budget)) for tokens, left in held) == max(curve)


def test_a_refusal_stands_until_somebody_ends_or_for_eight_steps() -> None:
    policy, asked = parse_scheduling("past_future"), list[int]()
    running, head = [Stream(i, 100) for i in range(4)], Stream(9, 600)
    remaining = policy._remaining  # type: ignore[attr-defined]
    policy._remaining = lambda item: asked.append(item.seq_id) or remaining(item)  # type: ignore[attr-defined, func-returns-value]
    room = Room(running, 1, 1000, 0.0)
    reasons = [policy.hold(head, room) for _ in range(9)]
    assert len(set(reasons)) == 1
    assert reasons[0]
    assert len(asked) == 2 * 5
    policy.left(running.pop(), completed=False)
    assert policy.hold(head, room)
    assert len(asked) == 2 * 5 + 4
    assert not policy.hold(Stream(10, 20), room)


def test_looking_ahead_counts_what_a_kv_policy_leaves() -> None:
    """Prompts of 400 tokens that become 100: two of them are whole at once, five answers of 100 tokens fit."""

    class Compressed(Stream):
        def slots(self, num_tokens: int) -> int:
            return 100 + num_tokens - 400

        @property
        def slots_now(self) -> int:
            return self.slots(self.num_tokens) if self.num_computed >= 400 else 400

    policy = parse_scheduling("past_future(reserve=0)")
    running = [Compressed(i, 400, num_computed=400, prompt=range(400), max_output=100) for i in range(4)]
    head = Compressed(9, 400, prompt=range(400), max_output=100)
    assert policy.hold(head, Room(running, 1, 1000, 0.0)) == ""
    assert "needs 1000" in policy.hold(head, Room(running, 1, 999, 0.0)).replace("to need", "needs")
    running[0].num_computed = 0
    assert policy.hold(Compressed(10, 400, prompt=range(400)), Room(running, 1, 1099, 0.0))


def test_looking_ahead_avoids_the_preemptions_of_greedy_admission() -> None:
    """Past-Future also ends earlier, as little is computed twice; S³ keeps room for every answer's end at once."""
    random = Random(9)
    jobs = [Job(0.02 * i, prompt(40), random.randrange(60, 100)) for i in range(200)]
    preemptions, ends = {}, {}
    for name in ("fcfs", "greedy", "past_future", "s3"):
        machine = Machine(parse_scheduling(name), capacity=1200, limits=Limits(256, 64), slope=0.001)
        ends[name] = max(machine.run(jobs).values())
        preemptions[name] = machine.scheduler.num_preemptions
    assert preemptions["greedy"] > preemptions["fcfs"] > 100
    assert preemptions["past_future"] <= preemptions["fcfs"] / 5
    assert ends["past_future"] < ends["fcfs"] < ends["greedy"]
    assert preemptions["s3"] <= preemptions["past_future"]


def test_s3_doubles_what_outran_its_prediction() -> None:
    policy = parse_scheduling("s3")
    item = Stream(1, 0, prompt=range(10))
    policy.arrived(item)
    room = Room([item], 1, 10 + 128 + 10 + 128, 0.0)
    late = Stream(2, 0, prompt=range(10))
    policy.arrived(late)
    assert policy.hold(late, room) == ""
    item.num_output = 129
    assert "266 of 276 tokens of KV are allotted" in policy.hold(late, room)


def test_answers_of_like_length_run_together() -> None:
    policy = parse_scheduling("length_perception(width=50, window=1000)")
    for _ in range(20):
        for length, answer in ((8, 20), (100, 400)):
            item = Stream(0, 0, prompt=range(length), num_output=0)
            policy.arrived(item)
            item.num_output = answer
            policy.left(item, True)
    items = [Stream(i, 0, float(i), prompt=range(100 if i % 2 else 8)) for i in range(6)]
    for item in items:
        policy.arrived(item)
    assert [i.seq_id for i in sorted(items, key=policy.key)] == [0, 2, 4, 1, 3, 5]
    assert policy.hold(items[0], Room(items[2:5], 1, 600, 0.0)) == ""
    assert "1 run together" in policy.hold(items[1], Room(items[2:5], 1, 600, 0.0))


def service_gap(name: str, jobs: list[Job]) -> float:
    """Largest difference of tokens computed for the two tenants while both had work."""
    machine = Machine(parse_scheduling(name), capacity=100_000, limits=Limits(256, 4))
    machine.run(jobs)
    last = {t: max(number for number, job in enumerate(jobs) if job.tenant == t) for t in ("flood", "quiet")}
    served, worst = {"flood": 0, "quiet": 0}, 0
    for plan in machine.plans:
        if any(number in last.values() for number, _ in plan):
            break
        for number, tokens in plan:
            served[jobs[number].tenant] += tokens
        worst = max(worst, served["flood"] - served["quiet"])
    return worst


@pytest.mark.parametrize("name", ["vtc", "dlpm(quantum=500)", "cost"])
def test_a_flood_of_one_tenant_does_not_delay_the_other(name: str) -> None:
    """All of the flood came before the quiet tenant's first request; from then on both are served alike."""
    flood = [Job(0.0, prompt(100), 20, tenant="flood") for _ in range(100)]
    quiet = [Job(0.001, prompt(100), 20, tenant="quiet") for _ in range(30)]
    assert service_gap("fcfs", flood + quiet) > 8000
    assert service_gap(name, flood + quiet) < 4 * 120 + 500 + 120  # what runs, the quantum, and one request


def test_an_idle_tenant_saves_up_no_claim() -> None:
    policy = parse_scheduling("vtc")
    worker, sleeper = Stream(1, 10, prompt=range(10), tenant="w"), Stream(2, 10, prompt=range(10), tenant="s")
    policy.arrived(sleeper)
    policy.left(sleeper, True)
    policy.arrived(worker)
    policy.ran([Scheduled(worker, 10, 1)] * 500, 0.1)
    policy.arrived(sleeper)
    assert policy.lane_rank("s", sleeper) == policy.lane_rank("w", worker) == (1000.0,)


def test_urgent_requests_take_the_place_of_best_effort_ones_until_those_have_waited_enough() -> None:
    policy = parse_scheduling("classes(headroom=0.2, patience=10)")
    urgent, work = Stream(1, 50, arrival=5.0), Stream(2, 50, arrival=0.0, priority=1)
    assert policy.may_preempt(urgent, work)
    assert not policy.may_preempt(Stream(3, 50, arrival=11.0), work)
    assert not policy.may_preempt(work, urgent)
    assert "20%" in policy.hold(work, Room([urgent], 1, 120, 6.0))
    assert policy.hold(work, Room([urgent], 1, 120, 10.0)) == ""
    assert policy.hold(urgent, Room([work], 1, 120, 6.0)) == ""


def test_the_promise_that_is_due_first_goes_first() -> None:
    policy = parse_scheduling("edf(slo=1, growth=4)")
    early, urgent, lax = Stream(1, 5, 0.0, 1), Stream(2, 5, 2.0), Stream(3, 5, 0.0, 2)
    assert sorted((early, urgent, lax), key=policy.key) == [urgent, early, lax]


def test_green_starts_newcomers_together() -> None:
    jobs = [Job(0.0, prompt(4), 100), *(Job(0.1 + 0.05 * i, prompt(4), 30) for i in range(8))]
    machine = Machine(parse_scheduling("green(batch=4, patience=5)"), limits=Limits(64, 16))
    machine.run(jobs)
    starts = {number: step for step, plan in reversed(list(enumerate(machine.plans))) for number, _ in plan}
    assert [len({starts[n] for n in group}) for group in ((1, 2, 3, 4), (5, 6, 7, 8))] == [1, 1]
    eager = Machine(parse_scheduling("fcfs"), limits=Limits(64, 16))
    eager.run(jobs)
    assert len(machine.plans) <= len(eager.plans)


def test_what_remains_is_what_counts_and_what_is_nearly_done_stays() -> None:
    policy = parse_scheduling("trail(limit=0.5)")
    policy.load({"mean": [0.0], "scale": [1.0], "weights": [1.0], "bias": 0.0})
    long, short = (Stream(i, 10, prompt=range(10)) for i in (1, 2))
    for item, state in ((long, 5.0), (short, 2.0)):
        policy.arrived(item)
        policy.probed(item, [state])
    assert policy.key(short) < policy.key(long)
    assert policy.may_preempt(short, long)
    assert not policy.may_preempt(long, short)
    long.num_output = 145  # of the 147 that exp(5) - 1 expects: nearly done
    assert not policy.may_preempt(short, long)
    policy.preempted(long)
    assert policy.key(long) < policy.key(short)


def test_whom_was_served_least_takes_the_seats_of_a_flood_that_runs() -> None:
    """The flood's long answers hold all seats; with a queue that is only fair to newcomers the quiet tenant waits."""
    flood = [Job(0.0, prompt(20), 400, tenant="flood") for _ in range(4)]
    quiet = [Job(1.0, prompt(20), 5, tenant="quiet")]
    ends = {}
    for name in ("vtc", "fastswitch(slack=100, every=0.5)"):
        machine = Machine(parse_scheduling(name), limits=Limits(64, 4))
        ends[name] = machine.run([*flood, *quiet])
        assert len(ends[name]) == 5
    assert ends["fastswitch(slack=100, every=0.5)"][4] < 2.0 < 4.0 < ends["vtc"][4]
