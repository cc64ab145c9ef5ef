"""Scheduling policies on the real engine, A against B in turn: ``python -m benchmarks.scheduling_traces CASE``.

A piece of a trace is replayed in this process, under one policy and then under the other, on the same
engine (weights, pool, machine), ``--rounds`` times; every round takes another piece of the trace and the other policy
first. Answers have the trace's lengths and nobody knows them beforehand (see ``pagoda.bench.replay``).

    chunks      conversation trace: sarathi_serve against prefill_first, gaps between tokens at equal load
    memory      conversation trace in a small KV: past_future against greedy admission, preemptions and goodput
    lengths     conversation or code trace, overload: sjf with true, predicted and ranked lengths against fcfs
    fairness    a tenant that floods and a quiet one: vtc and dlpm against fcfs, service gap while both wait
    locality    questions on documents by several tenants: dlpm against pure longest match, prefix hits
    offline     the same as one batch: batchllm against fcfs, tokens a second
    report      a table of what ``--out`` holds of all of them, into a page with ``--docs``
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from statistics import mean
from typing import TYPE_CHECKING, Any

from pagoda.bench.kv_report import splice
from pagoda.bench.latency import Promise, e2e, percentiles, summarize
from pagoda.bench.trace_files import read_trace
from pagoda.bench.traces import Arrival, scaled
from pagoda.schedule.policies import parse_scheduling
from pagoda.schedule.policies.base import SchedulingPolicy

if TYPE_CHECKING:
    from pagoda.bench.replay import Replayed, ReplayEngine

TRACES = Path(__file__).parents[2] / "shared" / "data" / "traces"


@dataclass(frozen=True)
class Case:
    """``policies``: the first is what the others are compared with. ``arrivals``: of a round, by its number."""

    policies: tuple[str, ...]
    arrivals: Callable[[argparse.Namespace, int], list[Arrival]]
    measure: Callable[[Replayed, argparse.Namespace], dict[str, float]]
    options: dict[str, Any]


def main() -> None:
    args = arguments()
    if args.case == "report":
        report(args)
        return
    case = CASES[args.case]
    rows = list(measured(case, args))
    for name in args.policy or case.policies:
        mine = [row["measures"] for row in rows if row["policy"] == name]
        print(f"{name:32} " + "  ".join(f"{key} {mean(m[key] for m in mine):.4g}" for key in mine[0]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=[*CASES, "report"], help="report: the table of --out's rows")
    parser.add_argument("--model", default="lantern")
    parser.add_argument("--trace", default="conv", help="conv, code, or a file")
    parser.add_argument("--requests", type=int, default=100, help="of each run")
    parser.add_argument(
        "--seconds", type=float, default=None, help="spread them over so long (instead of the trace's times)"
    )
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--length-scale", type=float, default=0.25)
    parser.add_argument("--most-prompt", type=int, default=1400, help="longer prompts are cut: the model has a limit")
    parser.add_argument("--most-output", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--policy", action="append", help="instead of the case's own; may be given several times")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread's, where others work too"
    )
    parser.add_argument("--seats", type=int, default=None, help="sequences that run at once")
    parser.add_argument("--kv", default=None, help="bytes of KV, for example 16MiB")
    parser.add_argument("--no-prefix", action="store_true", help="what was preempted is computed again, all of it")
    parser.add_argument("--slo-ttft", type=float, default=2.0)
    parser.add_argument("--slo-tpot", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=None, help="rows are added to this file of JSON lines")
    parser.add_argument("--docs", type=Path, help="of report: page whose table is rewritten")
    args = parser.parse_args()
    if args.case == "report" and (args.out is None or not args.out.exists()):
        parser.error(f"report reads the rows of --out, and {args.out} is no file")
    return args


def measured(case: Case, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each round and policy."""
    from pagoda.bench.replay import ProcessorClock, ReplayEngine

    options = {"memory": "2GiB", "structured_output": False} | case.options
    if args.kv is not None:
        options["kv_memory"] = args.kv
    if args.no_prefix:
        options["enable_prefix_caching"] = False
    if args.seats is not None:
        options["max_num_seqs"] = args.seats
    if args.clock == "cpu":
        options |= {"clock": ProcessorClock(), "num_threads": 1}
    names = list(args.policy or case.policies)
    with ReplayEngine(args.model, **options) as engine:
        warm_up(engine)
        for number in range(args.first, args.first + args.rounds):
            arrivals = case.arrivals(args, number)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                done = engine.run(arrivals, policy_of(name, engine, arrivals))
                row = {
                    "case": args.case,
                    "trace": args.trace,
                    "round": number,
                    "policy": name,
                    "setting": setting(args),
                }
                row["measures"] = case.measure(done, args) | {"seconds": done.seconds, "steps": done.num_steps}
                print(json.dumps(row), file=sys.stderr, flush=True)
                yield row


def setting(args: argparse.Namespace) -> str:
    """What a reader must know to run it again, beside the case and the trace."""
    told = {"requests": args.requests, "seconds": args.seconds, "lengths": args.length_scale, "seats": args.seats}
    said = [f"{name} {value:g}" for name, value in told.items() if value is not None]
    said += [f"kv {args.kv}"] if args.kv else []
    return ", ".join([*said, *(["no prefix cache"] if args.no_prefix else []), args.clock])


def warm_up(engine: ReplayEngine) -> None:
    """Pages are touched and kernels chosen before anything counts."""
    engine.run([Arrival(-1 - i, 0.0, 500, 8) for i in range(8)], parse_scheduling("fcfs"))


def policy_of(name: str, engine: ReplayEngine, arrivals: Sequence[Arrival]) -> SchedulingPolicy:
    """``oracle(…)`` is sjf that knows the lengths of the trace; the others are what ``--scheduling`` takes."""
    policy = parse_scheduling(name.replace("oracle", "sjf", 1))
    if name.startswith("oracle"):
        policy._lengths = Oracle({tuple(p): a.num_output for a, p in engine.with_prompts(arrivals)})  # type: ignore[attr-defined]
    return policy


class Oracle:
    """In the place of a histogram: the truth."""

    def __init__(self, lengths: dict[tuple[int, ...], int]) -> None:
        self._lengths = lengths

    def quantile(self, item: Any, q: float) -> int:
        return self._lengths[tuple(item.prompt)]

    def observe(self, item: Any) -> None:
        """Nothing is learned."""


# Arrivals -----------------------------------------------------------------------------------------------------------


def of_trace(args: argparse.Namespace, number: int) -> list[Arrival]:
    """The round's piece of the trace, every round another; lengths scaled to the model."""
    path = TRACES / f"azure_llm_2023_{args.trace}.csv.gz" if args.trace in ("conv", "code") else Path(args.trace)
    found = read_trace(path, (number + 1) * args.requests)[number * args.requests :]
    found = [replace(a, at=a.at - found[0].at) for a in found]
    speed = found[-1].at / args.seconds if args.seconds else args.time_scale
    fitting = [
        replace(a, num_prompt=min(a.num_prompt, args.most_prompt), num_output=min(a.num_output, args.most_output))
        for a in scaled(found, time=speed, length=args.length_scale)
    ]
    return fitting


def flood(args: argparse.Namespace, number: int) -> list[Arrival]:
    """The trace's requests: three of four are the flood's and come at once, the rest the quiet tenant's at their times,
    more than its half of the machine can do, so that it always waits.
    """
    found = of_trace(args, number)
    return [replace(a, tenant="flood" if i % 4 else "quiet", at=0.0 if i % 4 else a.at) for i, a in enumerate(found)]


def questions(args: argparse.Namespace, number: int) -> list[Arrival]:
    """Documents of 320 tokens, each asked about 8 times by three tenants, in random order; 64 tokens of one's own."""
    random, block = Random(number), 64
    documents = max(1, args.requests // 8)
    asked = [d for d in range(documents) for _ in range(8)]
    random.shuffle(asked)
    span = args.seconds or 0.0
    return [
        Arrival(
            number * 10_000 + i, span * i / len(asked), 6 * block, max(1, round(random.expovariate(1 / 24))),
            f"tenant-{random.randrange(3)}", block=block,
            blocks=(*(1000 * number + 10 * d + k for k in range(5)), -1 - i),
        )
        for i, d in enumerate(asked)
    ]  # fmt: skip


# Measures -----------------------------------------------------------------------------------------------------------


def gaps(done: Replayed, args: argparse.Namespace) -> dict[str, float]:
    """Seconds between two tokens of an answer, and to the first."""
    itl = percentiles([b - a for r in done.served for a, b in pairwise(r.token_at)])
    return {"itl_p50": itl["p50"], "itl_p99": itl["p99"], "itl_max": itl["max"], **waits(done, args)}


def waits(done: Replayed, args: argparse.Namespace) -> dict[str, float]:
    """Mean seconds, goodput, preemptions. ``steady_goodput``: requests a second whose first token came in five times
    the promise and that no gap of more than three times the promised mean tore, as Past-Future counts (10 s, 1.5 s).
    """
    steady = sum(
        r.token_at[0] - r.at <= 5 * args.slo_ttft
        and max((b - a for a, b in pairwise(r.token_at)), default=0.0) <= 3 * args.slo_tpot
        for r in done.served
    )
    s = summarize(done.served, Promise(args.slo_ttft, args.slo_tpot))
    return {
        "ttft_mean": s.ttft["mean"], "e2e_mean": s.e2e["mean"], "e2e_p99": s.e2e["p99"],
        "goodput": s.goodput_per_second, "steady_goodput": steady / done.seconds,
        "tokens_per_second": s.output_tokens_per_second, "preemptions": float(done.num_preemptions),
    }  # fmt: skip


def shares(done: Replayed, args: argparse.Namespace) -> dict[str, float]:
    """``gap``: most service that the flood got beyond the quiet tenant's over any stretch in which both waited.
    ``bound``: VTC's theorem 4.4, 2 max(longest prompt, 2 x tokens that ran together); dlpm may add two quanta to it.
    """
    quiet = [r for r in done.served if r.tenant == "quiet"]
    return {
        "gap": service_gap(done, "flood", "quiet"),
        "quiet_ttft": mean(r.token_at[0] - r.at for r in quiet),
        "flood_e2e": mean(e2e(r) for r in done.served if r.tenant == "flood"),
        "bound": 2 * max(max(r.num_prompt for r in done.served), 2.0 * most_together(done)),
        "longest_prompt": float(max(r.num_prompt for r in done.served)),
    }


def most_together(done: Replayed) -> int:
    """Tokens of requests that ran at the same time, each counted as long as it became."""
    changes = [(at, r.num_prompt + r.num_output) for r, at in zip(done.served, done.admitted_at, strict=True)]
    changes += [(r.token_at[-1], -r.num_prompt - r.num_output) for r in done.served]
    return max(accumulate(amount for _, amount in sorted(changes)))


def service_gap(done: Replayed, greedy: str, modest: str) -> float:
    """Service is prompt tokens computed (when first scheduled) and twice the output tokens, as VTC counts. The largest
    rise of (greedy's - modest's) within a stretch of steps before each of which both had requests waiting.
    """
    events = [
        (at, r.tenant, float(r.num_prompt - r.num_cached)) for r, at in zip(done.served, done.admitted_at, strict=True)
    ]
    events += [(at, r.tenant, 2.0) for r in done.served for at in r.token_at]
    events.sort()
    worst = lowest = difference = 0.0
    position, waited = 0, False
    for at, tenants in done.waiting:
        while position < len(events) and events[position][0] <= at:
            _, tenant, amount = events[position]
            difference += amount if tenant == greedy else -amount
            position += 1
        if waited:
            lowest = min(lowest, difference)
            worst = max(worst, difference - lowest)
        elif {greedy, modest} <= tenants:
            lowest = difference
        waited = {greedy, modest} <= tenants
    return worst


def hits(done: Replayed, args: argparse.Namespace) -> dict[str, float]:
    """Share of prompt tokens found in the cache, and speed."""
    cached = sum(r.num_cached for r in done.served) / sum(r.num_prompt for r in done.served)
    tokens = sum(r.num_prompt + r.num_output for r in done.served)
    return {"cached": cached, "total_tokens_per_second": tokens / done.seconds, **waits(done, args)}


# Report -------------------------------------------------------------------------------------------------------------

FIGURES = {
    "chunks": ("itl_p99", "itl_max", "ttft_mean"), "memory": ("preemptions", "goodput", "steady_goodput"),
    "lengths": ("e2e_mean",), "fairness": ("gap", "bound"), "locality": ("cached",),
    "offline": ("total_tokens_per_second",),
}  # fmt: skip


def report(args: argparse.Namespace) -> None:
    """Each policy beside the first of its case, on the same pieces of the trace: means, and the ratio of each round."""
    rows = [json.loads(line) for line in args.out.read_text(encoding="utf-8").splitlines()]
    lines = [
        "| case | policy | figure | against | of them | ratio | least … most |",
        "| --- " * 4 + "| ---: " * 3 + "|",
    ]
    groups: dict[tuple[str, str, str], dict[str, dict[int, dict[str, float]]]] = {}
    for row in rows:
        policies = groups.setdefault((row["case"], row["trace"], row["setting"]), {})
        policies.setdefault(row["policy"], {})[row["round"]] = row["measures"]
    for (case, trace, how), policies in groups.items():
        base = next(name for name in (*CASES[case].policies, *policies) if name in policies)
        for name in (n for n in policies if n != base):
            for figure in FIGURES[case]:
                pairs = [(policies[base][r][figure], policies[name][r][figure]) for r in policies[name]]
                ratios = [b / a if a else float("nan") for a, b in pairs]
                first, second = mean(a for a, _ in pairs), mean(b for _, b in pairs)
                lines.append(
                    f"| {case}, {trace}: {how}, {len(pairs)} rounds | `{name}` | {figure} | `{base}`: {first:.4g} "
                    f"| {second:.4g} | {second / first if first else float('nan'):.3g} "
                    f"| {min(ratios):.3g} … {max(ratios):.3g} |"
                )
    table = "\n".join(lines)
    print(table)
    if args.docs:
        args.docs.write_text(splice(args.docs.read_text(encoding="utf-8"), "real", table), encoding="utf-8")


SMALL = {"max_num_seqs": 16, "max_num_batched_tokens": 512}
CASES = {
    "chunks": Case(("prefill_first", "sarathi_serve(tbt=0.03, first=64)"), of_trace, gaps, {}),
    "memory": Case(("greedy", "fcfs", "past_future"), of_trace, waits, {"kv_memory": "12MiB"}),
    "lengths": Case(
        ("fcfs", "oracle(weight=100)", "sjf(weight=100)", "learning_to_rank(spread=600)"), of_trace, waits, SMALL
    ),
    "fairness": Case(("fcfs", "vtc", "dlpm(quantum=2000)"), flood, shares, SMALL),
    "locality": Case(
        ("dlpm(quantum=1000000000, window=1000000)", "dlpm(quantum=4096)", "vtc", "fcfs"), questions, hits,
        SMALL | {"kv_memory": "12MiB"},
    ),
    "offline": Case(("fcfs", "batchllm"), questions, hits, {"kv_memory": "24MiB"}),
}  # fmt: skip

if __name__ == "__main__":
    main()
