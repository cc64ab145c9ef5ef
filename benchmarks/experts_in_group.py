"""A mixture 3.6 times the memory of its whole process: `python -m benchmarks.experts_in_group` (root, for a cgroup).

The model of `benchmarks.experts` (random weights, 64 experts a layer, a skewed router) with 32 layers: 2.25 GiB of
experts. Each policy of the cache runs it as an `LLM` in a process of its own, inside a memory cgroup whose limit is the
budget, where the page cache cannot help either. All read the same requests, round by round, beside the model that is
all in memory. Tokens are drawn at temperature 1 by a seed, so that they are the same in every process and routing does
not settle into a loop, as the greedy tokens of random weights would.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import experts
from benchmarks.budget_soak import Group
from pagoda import LLM, SamplingParams
from pagoda.budget import MachineProbe
from pagoda.core.units import parse_bytes

WHOLE = "all in memory"
PROMPT, LENGTH = 4, 256  # tokens of a prompt; of the longest sequence


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One process: a request to warm up, then those that are measured, one after another."""
    options: dict[str, Any] = {"max_model_len": LENGTH, "max_num_batched_tokens": 64, "max_num_seqs": 1}
    if args.policy != WHOLE:
        options |= {"weights": "stream", "expert_cache": args.policy}
    prompts = experts.requests(1 + args.requests, PROMPT, 1)
    seconds: list[float] = []
    with LLM(args.model, memory=args.memory, enable_prefix_caching=False, **options) as llm:
        before: dict[str, Any] = {}
        for number, prompt in enumerate(prompts):
            params = SamplingParams(max_tokens=args.steps, temperature=1.0, seed=number, ignore_eos=True)
            start, first = time.perf_counter(), None
            for _ in llm.stream(prompt, params):
                first = first or time.perf_counter()
            if number:
                seconds.append(time.perf_counter() - (first or start))
            else:
                before = llm.stats()["model"]["expert_cache"] or {}
        stats = llm.stats()
    found = {
        "tokens_per_second": [round((args.steps - 1) / one, 2) for one in seconds],
        "peak_rss_bytes": MachineProbe().peak_rss(),
        "peak_leased_bytes": stats["memory"]["peak_leased_bytes"],
        "weights": stats["model"]["weights"],
    }
    if after := stats["model"]["expert_cache"]:
        hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
        tokens = args.requests * (PROMPT + args.steps - 1)
        found |= {"hit_rate": round(hits / max(1, hits + misses), 4), "misses": misses}
        found["bytes_per_token"] = (after["bytes_read"] - before["bytes_read"]) // tokens
    return found


def in_group(folder: Path, policy: str, args: argparse.Namespace) -> dict[str, Any]:
    """``run`` in a cgroup of the budget; the model that is all in memory has one of its own size."""
    memory = args.whole_memory if policy == WHOLE else args.memory
    command = [sys.executable, "-m", "benchmarks.experts_in_group", "--model", str(folder), "--policy", policy]
    command += ["--memory", memory, "--requests", str(args.requests), "--steps", str(args.steps)]
    return Group(parse_bytes(memory, what="--memory")).measure(command)


def summary(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """By policy: the median of all requests, beside ``lru`` request by request, and what the last round counted."""
    rates = {name: [rate for one in rounds for rate in one[name]["tokens_per_second"]] for name in rounds[0]}
    report = {}
    for name, found in rounds[-1].items():
        row = {key: value for key, value in found.items() if key != "tokens_per_second"}
        row["tokens_per_second"] = round(statistics.median(rates[name]), 2)
        if "lru" in rates:
            ratios = sorted(ours / lru for ours, lru in zip(rates[name], rates["lru"], strict=True))
            row |= {
                "beside_lru": round(statistics.median(ratios), 3),
                "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
            }
        report[name] = row
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="640MiB", help="limit of the group, and budget of the engine")
    parser.add_argument("--whole-memory", default="4GiB", help="the same of the model that is all in memory")
    parser.add_argument("--layers", type=int, default=32, help="72 MiB of experts each")
    parser.add_argument("--policies", nargs="+", default=["lru", "traced", WHOLE])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2, help="of a round, that are measured")
    parser.add_argument("--steps", type=int, default=48, help="tokens of an answer")
    parser.add_argument("--skew", type=float, default=12.0)
    parser.add_argument("--model", help="a folder that was written before (with --policy: the process inside)")
    parser.add_argument("--policy", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.policy:
        print(json.dumps(run(args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.model or Path(scratch) / "moe")
        if not args.model:
            experts.write(folder, args.skew, 1, args.layers)
        rounds = [{name: in_group(folder, name, args) for name in args.policies} for _ in range(args.rounds)]
    whole = experts.EXPERT_BYTES * 64 * args.layers
    print(json.dumps({"expert_bytes": whole, "memory": args.memory, "policies": summary(rounds)}, indent=1))


if __name__ == "__main__":
    main()
