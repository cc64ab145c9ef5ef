"""The simulator beside the real engine on the same requests: mean TTFT, mean time per request, throughput.

    python -m benchmarks.sim_validation lantern --settings 0,1,2 --keep results.json
    python -m benchmarks.sim_validation --keep results.json --out docs/scheduling.md

Each setting measures the model's step times (``bench.steps``) and replays the requests in the engine, three times in
turn, so that both see the same minutes of the machine; then the requests are simulated with what was measured. How fast
they come is a share of what the simulator says that the machine can do: 0.3 to 0.8, where a queue is short, and far
beyond, where throughput is bound. (At 0.9 to 1 a step that is a tenth too fast is a queue that is a third too short:
that measures how steady the machine is.) ``--clock cpu`` counts processor time of one thread on both sides, for a
machine that others use too. ``--keep`` adds to a file, so that settings can be run one by one; ``--out`` writes the
table.
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
from pagoda.bench.replay import ProcessorClock, ReplayEngine
from pagoda.bench.sim import jobs
from pagoda.bench.step_fit import Sample, fit_steps
from pagoda.bench.steps import measure_samples
from pagoda.bench.traces import Arrival, draw
from pagoda.core.clock import SystemClock
from pagoda.engine.config import EngineConfig
from pagoda.plan.catalogue import as_one_head
from pagoda.plan.simulator.cluster import simulate
from pagoda.plan.simulator.replica import Setting
from pagoda.schedule.policies import parse_scheduling
from pagoda.schedule.scheduler import Limits


@dataclass(frozen=True)
class Case:
    """``num`` requests around ``prompt`` and ``output`` tokens under one policy; ``load``: how fast they come, as a
    share of what the machine can do.
    """

    policy: str
    kind: str
    num: int
    load: float
    prompt: int
    output: int
    step_tokens: int = 512
    seqs: int = 32

    def arrivals(self, rate: float, longest: int) -> list[Arrival]:
        """No request is longer than the model's positions."""
        found = draw(self.kind, self.num, rate, seed=8, prompt=self.prompt, output=self.output)
        return [a for a in found if a.num_prompt + a.num_output < longest]


SMALL = (
    Case("fcfs", "poisson", 120, 0.3, 300, 30),
    Case("fcfs", "poisson", 160, 0.6, 300, 30, step_tokens=128),
    Case("fcfs", "poisson", 200, 0.8, 200, 60),
    Case("sarathi_serve(tbt=0.02)", "poisson", 160, 0.7, 300, 30),
    Case("prefill_first", "poisson", 140, 0.5, 300, 30),
    Case("fcfs", "poisson", 250, 20, 300, 30),
    Case("sjf", "poisson", 250, 20, 200, 40, seqs=8),
    Case("past_future", "bursty", 250, 3, 200, 60, seqs=16),
)
LARGE = (
    Case("fcfs", "poisson", 12, 0.4, 100, 12),
    Case("fcfs", "poisson", 16, 20, 100, 12, step_tokens=128),
    Case("prefill_first", "poisson", 16, 0.7, 100, 12),
)
PROMISE = Promise()
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sim_validation", description=__doc__)
    parser.add_argument("model", nargs="?", help="lantern or a folder; none: only write the table")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--large", action="store_true", help="the settings for models of a billion operations a token")
    parser.add_argument("--settings", default="", help="only these numbers of the list, from 0: 0,3")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring steps, for each setting")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of one thread, on both sides")
    parser.add_argument("--keep", type=Path, required=True, help="JSON file of results, added to")
    parser.add_argument("--out", type=Path, help="page whose table is rewritten")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.keep.read_text(encoding="utf-8")) if args.keep.exists() else []
    cases = LARGE if args.large else SMALL
    for number in [int(n) for n in args.settings.split(",") if n] or range(len(cases) if args.model else 0):
        row = compare(args.model, args.quantization, cases[number], args.seconds, args.clock)
        rows = [old for old in rows if _name(old) != _name(row)] + [row]
        args.keep.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(markdown(rows))
    if args.out:
        args.out.write_text(
            splice(args.out.read_text(encoding="utf-8"), "validation", markdown(rows)), encoding="utf-8"
        )


def compare(model: str, quantization: str, case: Case, seconds: float, clock: str) -> dict[str, Any]:
    """Steps measured and requests replayed, in turn; requests simulated. Of the replays the mean counts."""
    options: dict[str, Any] = {"memory": "4GiB", "quantization": quantization, "structured_output": False}
    if clock == "cpu":
        options["num_threads"] = 1
    ticks = ProcessorClock() if clock == "cpu" else SystemClock()
    options |= {"max_num_seqs": case.seqs, "max_num_batched_tokens": case.step_tokens}
    times = list[float]()

    def taught(num_output: int, logits: object) -> int:
        """Some token. Answers of a replay come from a teacher that notes the time, so steps are measured with one."""
        times.append(ticks.now())
        return 10 + num_output % 100

    samples, runs, arrivals, setting = list[Sample](), list[Summary](), list[Arrival](), None
    for _ in range(ROUNDS):
        samples += measure_samples(
            EngineConfig(model, **options), seconds=seconds / ROUNDS, clock=ticks, teacher=taught
        )
        with ReplayEngine(model, ticks, **options) as engine:
            setting = _setting(engine, case, samples)
            if not arrivals:
                longest = engine.engine.max_model_len
                arrivals = case.arrivals(case.load * _capacity(case.arrivals(1e6, longest), setting), longest)
            engine.run(arrivals[:4], parse_scheduling("fcfs"))  # touches what a served engine has touched
            runs.append(summarize(engine.run(arrivals, parse_scheduling(case.policy)).served, PROMISE))
    assert setting is not None
    each = [_short(one) for one in runs]
    real = {name: mean(one[name] for one in each) for name in each[0]}
    return {
        "model": Path(model).name, "weights": quantization, "clock": clock, "case": vars(case) | {"num": len(arrivals)},
        "rate": len(arrivals) / max(a.at for a in arrivals), "real": real, "runs": each,
        "simulated": _short(_simulated(arrivals, setting)),
    }  # fmt: skip


def _setting(engine: ReplayEngine, case: Case, samples: list[Sample]) -> Setting:
    """The engine's, with its KV and the step times measured so far."""
    manager = engine.engine.manager
    fmt, limits = as_one_head(manager.fmt), Limits(case.step_tokens, case.seqs)
    num_blocks = manager.capacity_tokens() // fmt.page_size
    return Setting(fmt, num_blocks, fit_steps(samples), case.policy, limits, use_prefix=False)


def _capacity(arrivals: list[Arrival], setting: Setting) -> float:
    """Requests a second where all are there at once."""
    return len(arrivals) / simulate(jobs(arrivals), setting).seconds


def _simulated(arrivals: list[Arrival], setting: Setting) -> Summary:
    return summarize(simulate(jobs(arrivals), setting).served, PROMISE)


def _short(s: Summary) -> dict[str, float]:
    return {
        "ttft": s.ttft["mean"], "e2e": s.e2e["mean"], "itl_p99": s.itl["p99"],
        "tokens_per_second": s.output_tokens_per_second,
    }  # fmt: skip


def _name(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["weights"], row["clock"], tuple(row["case"].values())


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and how many settings are within 10 %. Spread: the replays. largest less least, of the mean."""
    lines = [
        "| model, clock | policy | requests, load | tokens | step, seats | TTFT real | spread | simulated | "
        "| tokens/s real | simulated | | e2e |",
        "| --- | --- | --- | --- | --- |" + " ---: |" * 8,
    ]
    away = []
    for row in rows:
        case, real, sim = row["case"], row["real"], row["simulated"]
        off = {name: sim[name] / real[name] - 1 for name in real}
        away.append(max(abs(off["ttft"]), abs(off["tokens_per_second"])))
        ttfts = [one["ttft"] for one in row["runs"]]
        lines.append(
            f"| {row['model']}, {row['clock']} | `{case['policy']}` "
            f"| {case['num']} {case['kind']}, {row['rate']:.3g}/s ({case['load']:g}) "
            f"| {case['prompt']}+{case['output']} | {case['step_tokens']}, {case['seqs']} | {real['ttft']:.4f} s "
            f"| {(max(ttfts) - min(ttfts)) / real['ttft']:.0%} | {sim['ttft']:.4f} s "
            f"| {off['ttft']:+.1%} | {real['tokens_per_second']:.1f} | {sim['tokens_per_second']:.1f} "
            f"| {off['tokens_per_second']:+.1%} | {off['e2e']:+.1%} |"
        )
    within = sum(one <= 0.1 for one in away)
    lines.append(f"\nMean TTFT and throughput are both within 10 % in {within} of {len(rows)} settings, ")
    lines[-1] += f"on average {mean(away):.1%} apart." if away else "none measured yet."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
