"""What scheduling papers report, in the simulator at their scale: 8 replicas of Llama-2-7B on an A100, real traces.

    python -m benchmarks.scheduling_orderings ../shared/data/traces --out docs/scheduling.md

Every ordering is one comparison: the same requests under two policies (or sizes of step), the figure that its paper is
about, and the bound that it is held to. ``--out`` rewrites the table of the page and the pictures in ``img`` beside it;
``--only`` runs some of them. The real engine's side is ``benchmarks.scheduling_traces``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import mean

from pagoda.bench.kv_report import splice
from pagoda.bench.latency import Promise, e2e, summarize
from pagoda.bench.load_plots import cumulative
from pagoda.bench.sim import jobs
from pagoda.bench.trace_files import read_trace
from pagoda.bench.traces import Arrival, draw, scaled
from pagoda.plan.catalogue import pick_machine
from pagoda.plan.simulator.cluster import Simulated, simulate
from pagoda.plan.simulator.sequence import Served
from pagoda.plan.simulator.sequence import of as sequence_of
from pagoda.plan.targets import rented
from pagoda.schedule.item import Item
from pagoda.schedule.policies import parse_scheduling
from pagoda.schedule.policies.base import SchedulingPolicy
from pagoda.schedule.scheduler import Limits

REPLICAS = 8
PROMISE = Promise(2.0, 0.1)
PURE_LONGEST = "dlpm(quantum=1000000000, window=1000000)"


@dataclass(frozen=True)
class Found:
    """One ordering: ``ratio`` is to be at most (or, ``at_least``, at least) ``bound``."""

    what: str
    base: str
    other: str
    figure: str
    ratio: float
    bound: float
    at_least: bool = False
    series: dict[str, list[float]] | None = None

    @property
    def holds(self) -> bool:
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


def run(
    arrivals: Sequence[Arrival], policy: str | Callable[[], SchedulingPolicy], *,
    tokens: int = 512, seqs: int = 128, blocks: int | None = None,
    replicas: int = REPLICAS, page_size: int = 16,
) -> Simulated:  # fmt: skip
    """The arrivals under that policy; prefixes are cached where the trace says which are shared."""
    target = rented("llama-2-7b", pick_machine("a100-80g"), Limits(tokens, seqs), page_size=page_size, blocks=blocks)
    use_prefix = any(a.blocks for a in arrivals)
    setting = replace(target.setting, scheduling=policy, use_prefix=use_prefix)
    return simulate(jobs(arrivals), setting, replicas=replicas)


def gaps(served: Sequence[Served]) -> list[float]:
    return [after - before for r in served for before, after in pairwise(r.token_at)]


def stalls(traces: Path) -> list[Found]:
    """Sarathi-Serve: chunks beside decodes against whole prompts first, at equal load."""
    found = []
    for name, speed in (("conv", 6.0), ("code", 8.0)):
        arrivals = scaled(read_trace(traces / f"azure_llm_2023_{name}.csv.gz", 3000), time=speed)
        first, chunked = run(arrivals, "prefill_first", tokens=8192), run(arrivals, "fcfs")
        a, b = (summarize(one.served, PROMISE).itl["p99"] for one in (first, chunked))
        found.append(Found(
            f"chunks do not stall streams (Azure, {name})", "`prefill_first`", "`fcfs`, 512 tokens a step",
            f"p99 between tokens {a:.3f} s, {b:.3f} s", b / a, 1 / 3,
            series={"prefill_first": gaps(first.served), "fcfs, 512 a step": gaps(chunked.served)},
        ))  # fmt: skip
    return found


def preemptions(traces: Path) -> list[Found]:
    """Past-Future: admission that looks ahead, where long answers come in bursts and KV is short.

    Good is what the paper promises: the first token within 10 s, and never 1.5 s between two.
    """
    arrivals = draw("bursty", 4800, 2.9 * REPLICAS, seed=5, prompt=256, output=1024)
    runs = [run(arrivals, name, seqs=512) for name in ("greedy", "past_future")]
    greedy, ahead = (sum(r.num_preemptions for r in one.served) for one in runs)
    good = [sum(map(smooth, one.served)) / one.seconds for one in runs]
    return [
        Found("looking ahead preempts less", "`greedy`", "`past_future`", f"{greedy}, {ahead} preemptions",
              ahead / max(1, greedy), 1 / 5),
        Found("and more requests keep their promise", "`greedy`", "`past_future`",
              f"{good[0]:.2f}, {good[1]:.2f} good requests/s", good[1] / good[0], 1.0, at_least=True),
    ]  # fmt: skip


def smooth(record: Served) -> bool:
    return record.token_at[0] - record.at <= 10 and max(gaps([record]), default=0.0) <= 1.5


def short_first(traces: Path) -> list[Found]:
    """Shortest first on predicted lengths under overload: of two services, one with short answers and one with long
    ones, and of Azure's conversations, where prompts tell less. What true lengths would gain is the most that there is.
    """
    chat = draw("poisson", 4200, 140 * REPLICAS, seed=11, prompt=128, output=32)
    long = draw("poisson", 1800, 60 * REPLICAS, seed=12, prompt=512, output=512)
    essays = [replace(a, number=a.number + len(chat)) for a in long]
    azure = scaled(read_trace(traces / "azure_llm_2023_conv.csv.gz", 8000), time=24.0)
    found = []
    for name, arrivals in (("two services", sorted([*chat, *essays], key=lambda a: a.at)), ("Azure, conv", azure)):
        runs = {policy: run(arrivals, policy, seqs=64) for policy in ("fcfs", "sjf(weight=100)")}
        series = {policy: [e2e(r) for r in one.served] for policy, one in runs.items()}
        a, b = (mean(seconds) for seconds in series.values())
        best = mean(e2e(r) for r in run(arrivals, oracle, seqs=64).served)
        found.append(Found(
            f"short answers first cut the mean under overload ({name})", "`fcfs`", "`sjf(weight=100)`",
            f"mean {a:.1f} s, {b:.1f} s; with true lengths {best:.1f} s, {a / best:.2f}", a / b, 1.5, at_least=True,
            series=series,
        ))  # fmt: skip
    return found


class TrueLengths:
    """In the place of a histogram of past answers: nobody predicts better."""

    def quantile(self, item: Item, q: float) -> int:
        return sequence_of(item).job.num_output

    def observe(self, item: Item) -> None:
        """Nothing is learned."""


def oracle() -> SchedulingPolicy:
    policy = parse_scheduling("sjf(weight=100)")
    policy._lengths = TrueLengths()  # type: ignore[attr-defined]
    return policy


def fairness(traces: Path) -> list[Found]:
    """VTC and DLPM: a tenant that floods the machines against one that asks for a tenth of that, both always waiting.

    The gap is the largest difference of weighted service (a prompt token 1, a generated one 2) while both have requests
    that wait. VTC's bound (theorem 4.8) is twice the largest of a request's prompt and of all KV's tokens, a replica.
    """
    flood = [replace(a, at=0.0, tenant="flood") for a in draw("poisson", 2000, 50, seed=1, prompt=512, output=128)]
    quiet = [
        replace(a, at=1e-3, number=a.number + 2000, tenant="quiet")
        for a in draw("poisson", 400, 50, seed=2, prompt=512, output=128)
    ]
    arrivals, seqs = [*flood, *quiet], 64
    longest = max(a.num_prompt + a.num_output for a in arrivals)
    bound = REPLICAS * 2 * max(2 * seqs * longest, longest)
    worst = {name: service_gap(run(arrivals, name, seqs=seqs).served) for name in ("fcfs", "vtc", "dlpm")}
    return [
        Found(f"a flood does not starve the quiet tenant ({name})", "its bound", f"`{name}`",
              f"gap {worst[name] / 1000:.0f}k of {bound / 1000:.0f}k tokens; `fcfs` {worst['fcfs'] / 1000:.0f}k",
              worst[name] / bound, 1.0)
        for name in ("vtc", "dlpm")
    ]  # fmt: skip


def service_gap(served: Sequence[Served]) -> float:
    """The largest difference of service between two tenants until one of them has nothing left that waits."""
    events = sorted(
        (at, r.tenant, (r.num_prompt if number == 0 else 0) + 2)
        for r in served for number, at in enumerate(r.token_at)
    )  # fmt: skip
    last_start = {name: max(r.token_at[0] for r in served if r.tenant == name) for name in {r.tenant for r in served}}
    until, got, worst = min(last_start.values()), dict.fromkeys(last_start, 0.0), 0.0
    for at, tenant, amount in events:
        if at > until:
            break
        got[tenant] += amount
        worst = max(worst, max(got.values()) - min(got.values()))
    return worst


def prefixes(traces: Path) -> list[Found]:
    """DLPM keeps hits beside fairness; BatchLLM orders offline work by what is shared. On one replica: among
    several, where a request is sent would decide more than its place in the queue.
    """
    shared = draw("poisson", 400, 8, seed=3, prompt=1024, output=64, tenants=4, shared=48)
    pure, fair = (
        sum(r.num_cached for r in run(shared, name, blocks=2500, seqs=32, replicas=1).served)
        for name in (PURE_LONGEST, "dlpm")
    )
    offline = questions(60, 10)
    base, batch = (run(offline, name, blocks=2500, seqs=32, replicas=1) for name in ("fcfs", "batchllm"))
    return [
        Found("fair shares keep the hits of pure longest match", f"`{PURE_LONGEST}`", "`dlpm`",
              f"{pure / 1000:.0f}k, {fair / 1000:.0f}k tokens found", fair / pure, 0.9, at_least=True),
        Found("offline work by shared beginnings", "`fcfs`", "`batchllm`",
              f"{base.seconds:.0f} s, {batch.seconds:.0f} s for {len(offline)} requests", base.seconds / batch.seconds,
              1.1, at_least=True),
    ]  # fmt: skip


def questions(documents: int, each: int, block: int = 512) -> list[Arrival]:
    """``each`` questions of 128 tokens on every document of 4 blocks, all there at once, in no order."""
    order = [document for document in range(documents) for _ in range(each)]
    Random(6).shuffle(order)
    return [
        Arrival(n, 0.0, 4 * block + 128, 32, blocks=(*range(4 * d, 4 * d + 4), 10**6 + n), block=block)
        for n, d in enumerate(order)
    ]


ALL: dict[str, Callable[[Path], list[Found]]] = {
    "stalls": stalls, "preemptions": preemptions, "short-first": short_first, "fairness": fairness,
    "prefixes": prefixes,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduling_orderings", description=__doc__)
    parser.add_argument("traces", type=Path, help="folder of the traces")
    parser.add_argument("--only", choices=ALL, action="append", help="only this one; may be given several times")
    parser.add_argument("--out", type=Path, help="page whose table is rewritten")
    args = parser.parse_args()
    found = []
    for name in args.only or ALL:
        started = time.perf_counter()
        found += ALL[name](args.traces)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    print(markdown(found))
    if args.out:
        pictures(found, args.out.parent / "img")
        args.out.write_text(
            splice(args.out.read_text(encoding="utf-8"), "orderings", markdown(found)), encoding="utf-8"
        )


def markdown(found: Sequence[Found]) -> str:
    lines = ["| what | of | against | figures | ratio | bound | |", "| --- | --- | --- | --- | ---: | ---: | --- |"]
    for one in found:
        sign = "≥" if one.at_least else "≤"
        lines.append(
            f"| {one.what} | {one.base} | {one.other} | {one.figure} | {one.ratio:.2f} | {sign} {one.bound:.2f} "
            f"| {'holds' if one.holds else '**does not hold**'} |"
        )
    return "\n".join(lines)


def pictures(found: Sequence[Found], folder: Path) -> None:
    """One for each ordering that has series."""
    folder.mkdir(exist_ok=True)
    for one in found:
        if one.series:
            name = "-".join("".join(c if c.isalnum() else " " for c in one.what.lower()).split())
            (folder / f"sim-{name}.svg").write_text(cumulative(one.what, one.series), encoding="utf-8")


if __name__ == "__main__":
    main()
