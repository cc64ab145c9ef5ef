"""A model in less memory than its bytes, against disk and plan: `python -m benchmarks.streaming MODEL`.

Rounds of two measurements beside each other, so that both see the same machine: the disk's rate by plain direct reads
of the same file, and steps of the model with some sequences at once. What counts is the share of the disk's rate that
a step turns into tokens: bytes that a step has to read, over its time, over the rate. The other way to fit is
`--quantization int4 --weights auto`. `--group` runs it in a memory cgroup whose limit is the budget, where the page
cache cannot help (root, and the memory controller). Beside it stands what `pagoda plan` foretells of the same choice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.budget_soak import Group
from pagoda import LLM, SamplingParams
from pagoda.budget import MachineProbe
from pagoda.core.units import parse_bytes
from pagoda.models.load import Loaded
from pagoda.weights.direct import CHUNK_BYTES, DirectFile, aligned_buffer, span_bytes


def disk_rate(file: Path, num_bytes: int) -> float:
    """Bytes a second of direct reads, one after the other."""
    reader, buffer = DirectFile(file), aligned_buffer(span_bytes(CHUNK_BYTES))
    num_bytes = min(num_bytes, file.stat().st_size) // CHUNK_BYTES * CHUNK_BYTES
    start = time.perf_counter()
    for offset in range(0, num_bytes, CHUNK_BYTES):
        reader.read(offset, CHUNK_BYTES, buffer, "the benchmark's piece")
    seconds = time.perf_counter() - start
    reader.close()
    return num_bytes / seconds


def file_of(loaded: Loaded) -> Path:
    """The largest that weights are read from."""
    if loaded.streams_packed and loaded.packed is not None:
        return loaded.packed.file
    if loaded.spool is not None or loaded.path.is_file():
        return loaded.spool or loaded.path
    return max(loaded.path.glob("*.safetensors"), key=lambda f: f.stat().st_size)


def step_seconds(llm: LLM, batch: int, steps: int) -> list[float]:
    """Seconds of single decode steps."""
    prompts = [[3 + i, 5, 7, 11] for i in range(batch)]
    times = []
    stream = [llm.stream(p, SamplingParams(max_tokens=steps + 1, temperature=0, ignore_eos=True)) for p in prompts[:1]]
    if batch > 1:
        start = time.perf_counter()
        llm.generate(prompts, SamplingParams(max_tokens=steps, temperature=0, ignore_eos=True))
        return [(time.perf_counter() - start) / steps] * steps
    last = None
    for _ in stream[0]:
        now = time.perf_counter()
        if last is not None:
            times.append(now - last)
        last = now
    return times


def foretold(args: argparse.Namespace, disk_bytes_per_second: float) -> dict[str, Any]:
    """What a plan of the same choice says, by the machine's calibration and by the disk's rate of this run."""
    from dataclasses import replace

    from pagoda.models.catalog import folder_of, read_config
    from pagoda.plan.choice import Choice
    from pagoda.plan.demand import Demand
    from pagoda.plan.machine import load_machine
    from pagoda.plan.plans import Planner
    from pagoda.plan.subject import Subject

    subject = Subject.of(args.model, read_config(args.model), folder=folder_of(args.model))
    machine, reason = load_machine()
    asked = Demand(prompt=args.length - 64, output=64, concurrency=args.batch)
    budget, choice = (
        parse_bytes(args.memory, what="--memory"),
        Choice(args.quantization, max_num_batched_tokens=args.step_tokens),
    )
    now = replace(machine, disk_bytes_per_second=disk_bytes_per_second)
    plan, plan_now = (Planner(subject, m, None, asked, budget).plan(choice) for m in (machine, now))
    return {
        "machine": reason,
        "step_bytes": plan.read_bytes,
        "peak_bytes": plan.peak_bytes,
        "accounts": plan.accounts.as_dict(),
        "tokens_per_second": args.batch / plan.tpot,
        "tokens_per_second_at_this_disk_rate": args.batch / plan_now.tpot,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_num_batched_tokens": args.step_tokens, "max_num_seqs": args.batch, "max_model_len": args.length,
    }  # fmt: skip
    rounds = []
    start = time.perf_counter()
    if args.spool_dir is not None:
        options["spool_dir"] = args.spool_dir
    with LLM(args.model, memory=args.memory, weights=args.weights, quantization=args.quantization, **options) as llm:
        built = llm._open()
        loading = time.perf_counter() - start
        plan = built.loaded.stream
        streamed = 0 if plan is None else plan.step_bytes
        file = file_of(built.loaded)
        step_seconds(llm, args.batch, 2)
        for _ in range(args.rounds):
            rate = disk_rate(file, args.probe << 20)
            seconds = statistics.median(step_seconds(llm, args.batch, args.steps))
            again = disk_rate(file, args.probe << 20)
            share = streamed / seconds / statistics.mean((rate, again))
            rounds.append({"disk_bytes_per_second": (rate + again) / 2, "step_seconds": seconds, "share": share})
        stats = llm.stats()
    return {
        "weights": stats["model"]["weights"],
        "loading_seconds": loading,
        "step_bytes": streamed,
        "tokens_per_second": args.batch / statistics.median(r["step_seconds"] for r in rounds),
        "share": statistics.median(r["share"] for r in rounds),
        "rounds": rounds,
        "peak_leased_bytes": stats["memory"]["peak_leased_bytes"],
        "peak_rss_bytes": MachineProbe().peak_rss(),
        "accounts": {name: account["leased_bytes"] for name, account in stats["memory"]["accounts"].items()},
    }


def measure_in_group(args: argparse.Namespace) -> dict[str, Any]:
    """As ``measure``, by a process in a group of its own."""
    options = (option for option in sys.argv[1:] if option != "--group")
    command = [sys.executable, "-m", "benchmarks.streaming", *options, "--no-plan"]
    return Group(parse_bytes(args.memory, what="--memory")).measure(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--memory", default="1200MiB")
    parser.add_argument("--weights", default="stream")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--step-tokens", type=int, default=256)
    parser.add_argument("--spool-dir", help="where what cannot be streamed as it lies is packed, once")
    parser.add_argument("--probe", type=int, default=256, help="MiB of each measurement of the disk")
    parser.add_argument("--group", action="store_true", help="in a memory cgroup with the budget as its limit")
    parser.add_argument("--no-plan", action="store_true", help="do not ask the planner")
    args = parser.parse_args()
    measured = measure_in_group(args) if args.group else measure(args)
    if not args.no_plan:
        rate = statistics.median(one["disk_bytes_per_second"] for one in measured["rounds"])
        measured = {"foretold": foretold(args, rate), "measured": measured}
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
