"""What choosing the next step costs: ``python -m benchmarks.scheduler``; no model, no torch.

64 sequences decode and 2000 wait, of 16 tenants, with 400 beginnings of prompts. Each policy plans the same number of
steps; the smallest and the median time of ``schedule`` and of ``ended`` (what the policy learns from the step) together
are shown. With ``--turnover`` a sequence ends and one arrives at every step, so that each step admits one.

With ``--model lantern`` the engine itself decodes and waits so, and the share of its steps that scheduling takes is
shown.
"""

from __future__ import annotations

import argparse
import time
from random import Random
from statistics import median

from pagoda.core.clock import FalseClock
from pagoda.schedule.counting import CountingMemory, Stream
from pagoda.schedule.policies import POLICIES, parse_scheduling
from pagoda.schedule.scheduler import Limits, Scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--running", type=int, default=64)
    parser.add_argument("--waiting", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tenants", type=int, default=16)
    parser.add_argument("--turnover", action="store_true", help="one ends and one arrives at every step")
    parser.add_argument("--policy", action="append", help="only this one; may be given several times")
    parser.add_argument("--model", help="in the engine, with this model: share of a step")
    args = parser.parse_args()
    if args.model is not None:
        share_of_steps(args)
        return
    print(f"{'policy':20} {'least us':>9} {'median us':>10}")
    for name in args.policy or POLICIES.names():
        times = measure(name, args)
        print(f"{name:20} {min(times) * 1e6:9.0f} {median(times) * 1e6:10.0f}")


def share_of_steps(args: argparse.Namespace) -> None:
    """Seconds of ``schedule`` and ``ended`` over seconds of ``step``, processor time of one thread."""
    from pagoda.bench.replay import ProcessorClock, ReplayEngine
    from pagoda.bench.traces import Arrival

    clock = ProcessorClock()
    limits = {"max_num_seqs": args.running, "max_num_batched_tokens": 2048, "num_threads": 1}
    with ReplayEngine(args.model, clock, memory="2GiB", structured_output=False, **limits) as replay:
        engine, prompts = replay.engine, replay.with_prompts(Arrival(i, 0.0, 64, 1) for i in range(args.waiting))
        print(f"{'policy':20} {'step us':>9} {'scheduling us':>14} {'share':>7}")
        for name in args.policy or POLICIES.names():
            if parse_scheduling(name).needs_training:
                continue
            engine.scheduler.use(parse_scheduling(name))
            ids = [replay.submit(a, prompt, lambda num, logits: 10) for a, prompt in prompts]
            ids += [replay.submit(a, prompt, lambda num, logits: 10) for a, prompt in prompts[: args.running]]
            scheduling, steps = timed_steps(engine, clock, args)
            print(f"{name:20} {steps * 1e6:9.0f} {scheduling * 1e6:14.0f} {scheduling / steps:7.2%}", flush=True)
            for request_id in ids:
                engine.abort(request_id)


def timed_steps(engine, clock, args: argparse.Namespace) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Median seconds of scheduling, and of the whole step, once all seats decode."""
    running = engine.scheduler.running
    while len(running) < args.running or any(not s.num_output for s in running.values()):
        engine.step()
    inside, whole, scheduler = [0.0], [], engine.scheduler
    parts = []

    def watched(method):  # type: ignore[no-untyped-def]
        def call(*given):  # type: ignore[no-untyped-def]
            started = clock.now()
            result = method(*given)
            inside[0] += clock.now() - started
            return result

        return call

    scheduler.schedule, scheduler.ended = watched(scheduler.schedule), watched(scheduler.ended)
    for _ in range(args.steps):
        inside[0], started = 0.0, clock.now()
        engine.step()
        whole.append(clock.now() - started)
        parts.append(inside[0])
    del scheduler.schedule, scheduler.ended
    return median(parts), median(whole)


def measure(name: str, args: argparse.Namespace) -> list[float]:
    """Seconds of each step's scheduling."""
    random, clock = Random(1), FalseClock(1e4)
    scheduler = Scheduler(Limits(2048, args.running), parse_scheduling(name), CountingMemory(10**9), clock)
    items = [stream(i, random, args.tenants) for i in range(args.running + args.waiting)]
    for item in items:
        scheduler.add(item)
    while len(scheduler.running) < args.running or any(i.num_output == 0 for i in scheduler.running.values()):  # type: ignore[attr-defined]
        step(scheduler, clock)
    times = []
    for number in range(args.steps):
        times.append(step(scheduler, clock))
        if args.turnover:
            scheduler.remove(next(iter(scheduler.running.values())))
            scheduler.add(stream(len(items) + number, random, args.tenants, arrival=clock.now()))
    return times


def stream(number: int, random: Random, num_tenants: int, arrival: float | None = None) -> Stream:
    head = [number % 400] * 64
    length = random.randrange(64, 512)
    prompt = head + [random.randrange(32000) for _ in range(length - 64)]
    when = 9000 + number * 0.1 if arrival is None else arrival
    return Stream(number, length, when, random.randrange(3), prompt=prompt, tenant=f"t{number % num_tenants}")


def step(scheduler: Scheduler, clock: FalseClock) -> float:
    started = time.perf_counter()
    plan = scheduler.schedule()
    seconds = time.perf_counter() - started
    clock.advance(0.03)
    for s in plan.scheduled:
        item = s.item
        assert isinstance(item, Stream)
        item.num_computed += s.num_tokens
        if item.num_computed == item.num_tokens:
            item.num_tokens, item.num_output = item.num_tokens + 1, item.num_output + 1
    started = time.perf_counter()
    scheduler.ended(plan, 0.03)
    return seconds + time.perf_counter() - started


if __name__ == "__main__":
    main()
