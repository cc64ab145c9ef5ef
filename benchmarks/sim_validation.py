"""The simulator beside the real engine on the same requests: mean TTFT, mean time per request, throughput.

    python -m benchmarks.sim_validation lantern --settings 0,1,2 --keep results.json
    python -m benchmarks.sim_validation --keep results.json --out docs/scheduling.md

Each setting measures the model's step times (``bench.steps``) and replays the requests in the engine, twice in turn, so
that both see the same minutes of the machine; then the requests are simulated with what was measured. ``--keep`` adds
to a file, so that settings can be run one by one where a machine is quiet for minutes only; ``--out`` writes the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pagoda.bench.kv_report import splice
from pagoda.bench.latency import Promise, Summary, summarize
from pagoda.bench.replay import ReplayEngine
from pagoda.bench.sim import jobs
from pagoda.bench.step_fit import Sample, fit_steps
from pagoda.bench.steps import measure_samples
from pagoda.bench.traces import Arrival, draw
from pagoda.engine.config import EngineConfig
from pagoda.plan.catalogue import as_one_head
from pagoda.plan.simulator.cluster import simulate
from pagoda.plan.simulator.replica import Setting
from pagoda.schedule.policies import parse_scheduling
from pagoda.schedule.scheduler import Limits


@dataclass(frozen=True)
class Case:
    """``num`` requests at ``rate`` a second around ``prompt`` and ``output`` tokens, under one policy."""

    policy: str
    kind: str
    num: int
    rate: float
    prompt: int
    output: int
    step_tokens: int = 512
    seqs: int = 32

    def arrivals(self, longest: int) -> list[Arrival]:
        """No request is longer than the model's positions."""
        found = draw(self.kind, self.num, self.rate, seed=8, prompt=self.prompt, output=self.output)
        return [a for a in found if a.num_prompt + a.num_output < longest]


SMALL = (
    Case("fcfs", "poisson", 150, 12, 300, 30),
    Case("fcfs", "poisson", 150, 12, 300, 30, step_tokens=128),
    Case("fcfs", "bursty", 250, 60, 300, 30),
    Case("sarathi_serve(tbt=0.02)", "poisson", 200, 16, 300, 30),
    Case("prefill_first", "bursty", 150, 12, 300, 30),
    Case("sjf", "poisson", 250, 80, 200, 40, seqs=8),
)
LARGE = (
    Case("fcfs", "poisson", 12, 0.8, 100, 12),
    Case("fcfs", "poisson", 16, 4.0, 100, 12, step_tokens=128),
    Case("sarathi_serve(tbt=0.3)", "bursty", 12, 0.8, 100, 12),
    Case("prefill_first", "poisson", 16, 4.0, 100, 12),
)
PROMISE = Promise()
ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sim_validation", description=__doc__)
    parser.add_argument("model", nargs="?", help="lantern or a folder; none: only write the table")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--large", action="store_true", help="the settings for models of a billion operations a token")
    parser.add_argument("--settings", default="", help="only these numbers of the list, from 0: 0,3")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring steps, before each setting")
    parser.add_argument("--keep", type=Path, required=True, help="JSON file of results, added to")
    parser.add_argument("--out", type=Path, help="page whose table is rewritten")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.keep.read_text(encoding="utf-8")) if args.keep.exists() else []
    cases = LARGE if args.large else SMALL
    for number in [int(n) for n in args.settings.split(",") if n] or range(len(cases) if args.model else 0):
        row = compare(args.model, args.quantization, cases[number], args.seconds)
        rows = [old for old in rows if _name(old) != _name(row)] + [row]
        args.keep.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(markdown(rows))
    if args.out:
        args.out.write_text(
            splice(args.out.read_text(encoding="utf-8"), "validation", markdown(rows)), encoding="utf-8"
        )


def compare(model: str, quantization: str, case: Case, seconds: float) -> dict[str, Any]:
    """Steps measured and requests replayed, in turn; requests simulated. Of the replays the mean counts."""
    options: dict[str, Any] = {"memory": "4GiB", "quantization": quantization, "structured_output": False}
    plain = EngineConfig(model, max_num_seqs=32, max_num_batched_tokens=512, **options)
    samples, runs, arrivals = list[Sample](), list[Summary](), list[Arrival]()
    for _ in range(ROUNDS):
        samples += measure_samples(plain, seconds=seconds / ROUNDS)
        with ReplayEngine(model, max_num_seqs=case.seqs, max_num_batched_tokens=case.step_tokens, **options) as engine:
            manager = engine.engine.manager
            arrivals = case.arrivals(engine.engine.max_model_len)
            fmt, tokens = as_one_head(manager.fmt), manager.capacity_tokens()
            engine.run(arrivals[:4], parse_scheduling("fcfs"))  # touches what a served engine has touched
            runs.append(summarize(engine.run(arrivals, parse_scheduling(case.policy)).served, PROMISE))
    steps = fit_steps(samples)
    real = {name: mean(_short(one)[name] for one in runs) for name in _short(runs[0])}
    setting = Setting(
        fmt, tokens // fmt.page_size, steps, case.policy, Limits(case.step_tokens, case.seqs), use_prefix=False
    )
    return {
        "model": Path(model).name, "weights": quantization, "case": vars(case) | {"num": len(arrivals)},
        "spread": steps.spread, "real": real, "simulated": _short(_simulated(arrivals, setting)),
    }  # fmt: skip


def _simulated(arrivals: list[Arrival], setting: Setting) -> Summary:
    return summarize(simulate(jobs(arrivals), setting).served, PROMISE)


def _short(s: Summary) -> dict[str, float]:
    return {
        "ttft": s.ttft["mean"], "e2e": s.e2e["mean"], "itl_p99": s.itl["p99"],
        "tokens_per_second": s.output_tokens_per_second,
    }  # fmt: skip


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["weights"], tuple(row["case"].values())


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and how many settings are within 10 %."""
    lines = [
        "| model | policy | requests | tokens | step | TTFT real | simulated | | tokens/s real | simulated | | e2e |",
        "| --- | --- | --- | --- |" + " ---: |" * 8,
    ]
    away = []
    for row in rows:
        case, real, sim = row["case"], row["real"], row["simulated"]
        off = {name: sim[name] / real[name] - 1 for name in real}
        away.append(max(abs(off["ttft"]), abs(off["tokens_per_second"])))
        lines.append(
            f"| {row['model']} | `{case['policy']}` | {case['num']} {case['kind']}, {case['rate']:g}/s "
            f"| {case['prompt']}+{case['output']} | {case['step_tokens']} | {real['ttft']:.3f} s | {sim['ttft']:.3f} s "
            f"| {off['ttft']:+.0%} | {real['tokens_per_second']:.1f} | {sim['tokens_per_second']:.1f} "
            f"| {off['tokens_per_second']:+.0%} | {off['e2e']:+.0%} |"
        )
    within = sum(one <= 0.1 for one in away)
    lines.append(f"\nMean TTFT and throughput are both within 10 % in {within} of {len(rows)} settings, ")
    lines[-1] += f"on average {mean(away):.0%} apart." if away else "none measured yet."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
