"""What ``pagoda plan`` says beside what happens: memory and speed of many model-plan pairs, as a table.

    python -m benchmarks.plan_accuracy lantern FOLDER … --out docs/planner.md
    python -m benchmarks.plan_accuracy lantern --machine FILE --steps 20 --pairs 0,1 --keep results.json

Calibrates first (or takes ``--machine FILE``; with ``--steps SECONDS`` each model in each format too, as ``pagoda
doctor --calibrate --model`` does), then runs every pair in a process of its own: the engine that the plan describes,
``concurrency`` random prompts at once, ends ignored. Compared are the bytes that the ledger leased at its peak, the
process's peak RSS, seconds of a prompt alone, and seconds a token while all decode: means of prompts (three at least,
for half a second at least) and of all such steps, as a plan's times are. What was measured while others used the
processors is not kept: the command ends then, and goes on with ``--keep`` when it is called again. Memory of some
machines changes its pace: it is looked at before and after each run, and the plan is of that pace. KV on a disk is read
from the disk: before every step its file is dropped from the page cache, as a plan takes it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pagoda.bench.kv_report import splice
from pagoda.bench.pace import Pace
from pagoda.bench.steps import calibrate_model
from pagoda.models.catalog import folder_of, read_config
from pagoda.plan.accounts import SERVER_BYTES
from pagoda.plan.choice import Choice
from pagoda.plan.demand import Demand
from pagoda.plan.far import Disk
from pagoda.plan.machine import load_machine, save_machine
from pagoda.plan.plans import Plan, Planner
from pagoda.plan.prices import nearest_prices
from pagoda.plan.subject import Subject

PAIRS = (
    (Choice("auto"), Demand(256, 48, 1)),
    (Choice("auto"), Demand(1024, 48, 8)),
    (Choice("int8"), Demand(256, 48, 1)),
    (Choice("int8", "int8"), Demand(1024, 32, 8)),
    (Choice("int4"), Demand(512, 48, 1)),
    (Choice("w8a8"), Demand(512, 48, 4)),
    (Choice("auto", max_num_batched_tokens=256), Demand(1500, 32, 2)),
    (Choice("auto", kv="offload", max_num_batched_tokens=512), Demand(3000, 48, 1)),
    (Choice("int8", kv="offload", max_num_batched_tokens=512), Demand(1500, 32, 2)),
    (Choice("auto", kv="quest(pages=0.25)+offload", max_num_batched_tokens=512), Demand(3000, 48, 1)),
)
FOLDER, DISK_BYTES = tempfile.gettempdir(), 1 << 30
BUDGET = 6 << 30
MOST_ELSEWHERE = 0.12
LEAST_SECONDS = 0.5
"""Of prompts alone: three of 10 ms each are no mean."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_accuracy", description=__doc__)
    parser.add_argument("models", nargs="*", default=["lantern"])
    parser.add_argument("--machine", type=Path, help="a kept calibration; default: calibrate now")
    parser.add_argument("--pairs", default="", help="only these numbers of the list, from 0: 0,3")
    parser.add_argument("--steps", type=float, help="measure each model's own step times for so many seconds")
    parser.add_argument("--keep", type=Path, help="JSON file of results, added to; the table is of all that are kept")
    parser.add_argument("--out", type=Path, help="page whose table is rewritten")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(json.loads(args.one))))
        return
    machine_file = args.machine or _calibrate()
    numbers = [int(n) for n in args.pairs.split(",") if n] or range(len(PAIRS))
    rows = json.loads(args.keep.read_text(encoding="utf-8")) if args.keep and args.keep.exists() else []
    for model in args.models:
        calibrated: set[tuple[str, str]] = set()
        for number in numbers:
            try:
                if args.steps is not None:
                    calibrate(model, number, machine_file, args.steps, calibrated)
                row = compare(model, number, machine_file)
            except Disturbed as error:
                sys.exit(f"{model}, pair {number}: {error}")
            if row is not None:
                rows = [old for old in rows if any(old[key] != row[key] for key in ("model", "plan", "asked"))] + [row]
            if args.keep:
                args.keep.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = markdown(rows)
    print(text)
    if args.out:
        args.out.write_text(splice(args.out.read_text(encoding="utf-8"), "accuracy", text), encoding="utf-8")


def _calibrate() -> Path:
    from pagoda.bench.machine import measure

    return save_machine(measure(lambda what: print(f"measuring {what}", file=sys.stderr, flush=True)))


def planned(model: str, number: int, machine_file: Path, pace: float | None = None) -> Plan | None:
    """The plan of that pair at that pace of memory, None where the model's positions end before."""
    choice, demand = PAIRS[number]
    subject = Subject.of(model, read_config(model), folder=folder_of(model))
    if demand.length + 16 > subject.shape.max_position:
        return None
    machine, _ = load_machine(machine_file)
    disk, prices = Disk(DISK_BYTES, FOLDER), nearest_prices(subject.name, subject.family, subject.shape.num_params)
    planner = Planner(subject, machine, prices, demand, BUDGET, disk)
    return planner.plan(choice, pace)


class Disturbed(Exception):
    """Somebody else used the machine while it was measured: the figures are worth nothing."""


class Alone:
    """``with Alone(): …`` raises Disturbed at its end where others had more than ``MOST_ELSEWHERE`` of a core."""

    def __enter__(self) -> None:
        self._started, self._before = time.monotonic(), self._others()

    def __exit__(self, kind: object, *_: object) -> None:
        cores = (self._others() - self._before) / (time.monotonic() - self._started)
        if kind is None and cores > MOST_ELSEWHERE:
            raise Disturbed(f"{cores:.2f} cores were busy elsewhere; measure again on a quiet machine")

    @staticmethod
    def _others() -> float:
        """Seconds of processor time of everybody but us and our children that have ended."""
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
        used = [int(field) for place, field in enumerate(fields[:8]) if place not in (3, 4)]  # idle, waiting for disks
        return sum(used) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def calibrate(model: str, number: int, machine_file: Path, seconds: float, done: set[tuple[str, str]]) -> None:
    """The steps of that pair's formats, once."""
    formats = PAIRS[number][0].quantization, PAIRS[number][0].kv_cache_dtype
    if formats not in done and planned(model, number, machine_file) is not None:
        with Alone():
            calibrate_model(model, *formats, seconds=seconds)
        done.add(formats)


def compare(model: str, number: int, machine_file: Path) -> dict[str, Any] | None:
    """Predicted beside measured, of one pair."""
    plan = planned(model, number, machine_file)
    if plan is None:
        return None
    _, demand = PAIRS[number]
    work = {"model": model, "flags": plan.flags, "prompt": demand.prompt, "output": demand.output}
    command = [sys.executable, "-m", "benchmarks.plan_accuracy", "--one", json.dumps(work | {"at_once": plan.running})]
    pace = Pace()
    with Alone():
        pace.look()
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": "."})
        pace.look()
    found = json.loads(done.stdout.splitlines()[-1]) | {"paces": pace.seen}
    plan = planned(model, number, machine_file, statistics.fmean(pace.seen))
    assert plan is not None
    row = {"model": Path(model).name, "plan": str(plan.choice), "requests": plan.running, **found}
    row["asked"] = f"{demand.prompt} + {demand.output}"
    row |= {"planned_bytes": plan.peak_bytes, "planned_tpot": plan.tpot, "planned_ttft": plan.ttft_alone}
    print(json.dumps(row), file=sys.stderr, flush=True)
    return row


def run(work: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own: the engine of the plan, measured."""
    import random

    from pagoda.engine.build import build
    from pagoda.engine.config import EngineConfig
    from pagoda.engine.intake import Intake
    from pagoda.sampling.params import SamplingParams
    from pagoda.server import logs, serving, traces  # noqa: F401  # as pagoda serve has them

    given = dict(zip(work["flags"][::2], work["flags"][1::2], strict=True))
    options: dict[str, Any] = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items()}
    for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens"):
        options[name] = int(options[name])
    options["enable_prefix_caching"] = False  # it would keep the first prompts, in bytes that the budget has to spare
    built = build(EngineConfig(work["model"], reserve_bytes=SERVER_BYTES, **options))
    server = built.ledger.lease("server", SERVER_BYTES, "what pagoda serve holds")
    engine, intake = built.engine, Intake(built)
    rng, vocab = random.Random(0), built.loaded.shape.vocab_size
    params = SamplingParams(temperature=0, max_tokens=work["output"], ignore_eos=True)

    far = engine.stores.offloaded

    def step() -> float:
        if far is not None:
            far.storage.tier.drop_cached()  # type: ignore[attr-defined]
        started = time.perf_counter()
        engine.step()
        return time.perf_counter() - started

    def prompt() -> list[int]:
        return [rng.randrange(3, vocab) for _ in range(work["prompt"])]

    firsts = list[float]()
    while len(firsts) < 4 or sum(firsts[1:]) < LEAST_SECONDS:
        # The first one touches code and memory that a served engine has touched.
        engine.add(intake.request(f"alone-{len(firsts)}", prompt(), SamplingParams(temperature=0, max_tokens=1)))
        firsts.append(0.0)
        while engine.has_work:
            firsts[-1] += step()
    for number in range(work["at_once"]):
        engine.add(intake.request(f"together-{number}", prompt(), params))
    steps = []
    while engine.has_work:
        waiting = len(engine.scheduler.waiting)
        pending = any(s.num_tokens - s.num_computed > 1 for s in engine.scheduler.running.values())
        seconds = step()
        if not waiting and not pending and len(engine.scheduler.running) == work["at_once"]:
            steps.append(seconds)
    memory = built.stats()["memory"]
    server.release()
    built.close()
    return {
        "leased_bytes": memory["peak_leased_bytes"], "rss_bytes": memory["peak_rss_bytes"],
        "ttft": statistics.fmean(firsts[1:]), "tpot": statistics.fmean(steps),
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, and how many pairs are within the promised bounds."""
    head = (
        "| model | plan | tokens | at a time | memory planned | leased | | peak RSS | first token planned | measured | "
        "| per token planned | measured | | memory, GB/s |"
    )
    lines = [head, "| --- | --- | --- |" + " ---: |" * 12]
    for row in rows:
        memory, first, each = (row[a] / row[b] - 1 for a, b in _COMPARED)
        lines.append(
            f"| {row['model']} | {row['plan']} | {row['asked']} | {row['requests']} | {_mib(row['planned_bytes'])} "
            f"| {_mib(row['leased_bytes'])} | {memory:+.1%} | {_mib(row['rss_bytes'])} "
            f"| {row['planned_ttft']:.3f} s | {row['ttft']:.3f} s | {first:+.0%} "
            f"| {1000 * row['planned_tpot']:.1f} ms | {1000 * row['tpot']:.1f} ms | {each:+.0%} "
            f"| {', '.join(f'{pace / 1e9:.0f}' for pace in row.get('paces', ()))} |"
        )
    within = [
        sum(abs(row[a] / row[b] - 1) <= bound for row in rows) for (a, b), bound in zip(_COMPARED, _BOUNDS, strict=True)
    ]
    lines.append(
        f"\nOf {len(rows)} pairs, memory is within 3 % in {within[0]}, the first token within 20 % in {within[1]}, "
        f"a token's time within 20 % in {within[2]}."
    )
    return "\n".join(lines)


_COMPARED = (("planned_bytes", "leased_bytes"), ("planned_ttft", "ttft"), ("planned_tpot", "tpot"))
_BOUNDS = (0.03, 0.2, 0.2)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
