"""What observing, deciding and compacting cost beside a decode step, with many sequences at once.

    python -m benchmarks.kv_overhead --kv "h2o(budget=0.25)" "snapkv(budget=0.25)" --sequences 32
    python -m benchmarks.kv_overhead --shape 0.5B --prompt 128 --steps 33
    python -m benchmarks.kv_overhead --shape 1B --prompt 400 --steps 33 --threads 2 --kv exact quest loki sparq

Prompts are computed, then ``--steps`` steps bring one token to each sequence. Shares are of the time of those steps,
and *with prompts* of everything from the first prompt on, which is where methods act that compress a prompt once.
Ratios within one run, so that other work on the machine touches both alike; medians of ``--rounds`` runs, in turns.

deciding   what policies do between steps: adding up what a step told them, choosing slots, moving them, encoding pages
observing  what attention does for them within a step: summing what slots receive, keeping the newest queries. It is
           no part of *deciding*, and has no clock of its own: a twin runs next to the method in each round, which is
           shown nothing and holds as many slots (``random`` with that budget), and whose attention takes as much less.
           Methods that act once are shown nothing after that; before it their twin is ``exact``. Not of codecs, whose
           attention decodes
encoding   what codecs do within a step whose codes depend on a page's numbers and a calibration. It is no part of
           *deciding*, nor of attention
choosing   what selections do, which choose pages within a step: the arrays of the choice, scores, and the choice itself

``--shape 0.5B`` or ``1B`` is a random model of that shape, whose steps take long; calibrations that methods want are
random too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda import LLM, SamplingParams
from pagoda.bench.random_calibrations import calibrate_at_random
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies._scored import Once, Rolling
from pagoda.kv.policies.base import Need

from .arguments import positive
from .kv_selection import CONFIG, write_model
from .step import profile_of

EVERY_METHOD = [
    "streaming_llm", "recent", "h2o", "scissorhands", "corm", "hashevict", "scope", "razor_attention", "snapkv",
    "snapkv+ada", "snapkv+pyramid", "finch", "compresskv", "zigzagkv", "bfp_outlier_rearrange", "quest", "loki",
    "sparq", "duo_attention", "alisa", "attendre", "elastic_cache", "kvmerger", "keydiff", "subgen", "less", "locret",
    "windowkv", "random", "int2", "kivi", "zipcache", "think", "csr", "coupled_quantization", "eigen_attention",
    "kv_heads_compress", "chai", "lserve", "shadowkv", "tokenselect", "clusterkv", "lychee_decode", "a2ats", "ltri_llm",
    "longcache",
]  # fmt: skip


ONE_B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}  # fmt: skip
SHAPES = {"0.5B": CONFIG, "1B": CONFIG | ONE_B}

CHOOSING = ("page choice", "choosers")  # as a profile calls it
WITHIN_ATTENTION = frozenset({Need.PROBS, Need.RECEIVED, Need.WANTED, Need.QUERIES})


@dataclass(frozen=True)
class Part:
    """Seconds of prompts, or of steps: all, by policies between steps, in attention, encoding pages, choosing them."""

    all: float
    deciding: float
    attention: float
    encoding: float
    choosing: float


@dataclass(frozen=True)
class Run:
    """One method served once."""

    prompts: Part
    steps: Part
    acts: int


def serve(llm: LLM, kv: str, sequences: int, prompt: int, steps: int) -> Run:
    """``sequences`` random prompts, and so many steps of all together."""
    built = llm._open()
    engine, rng = built.engine, random.Random(kv)
    params = SamplingParams(temperature=0, max_tokens=steps + 64, ignore_eos=True, kv=kv)
    for index in range(sequences):
        ids = [rng.randrange(8, built.loaded.shape.vocab_size) for _ in range(prompt)]
        engine.add(llm._intake.request(f"{kv}-{index}", ids, params))
    marks = [_mark(llm)]
    while len(engine.scheduler.running) < sequences or any(
        s.num_tokens < s.prompt_len + 2
        for s in engine.scheduler.running.values()  # type: ignore[attr-defined]
    ):
        engine.step()
        if len(engine._requests) < sequences:
            raise RuntimeError(f"{kv}: {sequences - len(engine._requests)} of {sequences} requests failed")
    acts = engine.counters.policy_acts
    marks.append(_mark(llm))
    for _ in range(steps):
        engine.step()
    marks.append(_mark(llm))
    acts = engine.counters.policy_acts - acts
    for request_id in list(engine._requests):
        engine.abort(request_id)
    engine.step()
    prompts, answers = (
        Part(*(new - old for old, new in zip(*pair, strict=True))) for pair in itertools.pairwise(marks)
    )
    return Run(prompts, answers, acts)


def _mark(llm: LLM) -> tuple[float, ...]:
    """The clocks of a `Part`."""
    built = llm._open()
    kernels = profile_of(built).kernels
    attention, encoding, *choosing = (kernels.get(name, (0, 0.0))[1] for name in ("attention", "encoding", *CHOOSING))
    return time.perf_counter(), built.engine.counters.policy_seconds, attention, encoding, sum(choosing)


def twin_of(kv: str) -> str | None:
    """What has the same attention to compute as ``kv`` and observes nothing: in prompts and steps of a method that acts
    again and again, in prompts of one that acts once. None: nothing is observed, or nothing is its twin.
    """
    eviction = parse_policy(kv).eviction
    if eviction is None or not eviction.needs & WITHIN_ATTENTION:
        return None
    if isinstance(eviction, Rolling):
        return f"random(budget={eviction.budget}, every={eviction.every})"
    return "exact" if isinstance(eviction, Once) else None


def observing(mine: Run, twin: Run, *, once: bool) -> tuple[float, float]:
    """Seconds that attention takes longer than the twin's: in the steps, and with prompts."""
    prompts, steps = mine.prompts.attention - twin.prompts.attention, mine.steps.attention - twin.steps.attention
    return (0.0, prompts) if once else (steps, prompts + steps)


def cells(kv: str, runs: list[Run], twins: list[Run]) -> list[str]:
    """Medians of the runs, as a table has them."""

    def both(seconds: list[tuple[float, float]]) -> list[str]:
        times = [(run.steps.all, run.prompts.all + run.steps.all) for run in runs]
        shares = [(x / steps, y / whole) for (x, y), (steps, whole) in zip(seconds, times, strict=True)]
        return [f"{statistics.median(part):.1%}" for part in zip(*shares, strict=True)]

    once = isinstance(parse_policy(kv).eviction, Once)
    seen = [observing(mine, twin, once=once) for mine, twin in zip(runs, twins, strict=bool(twins))]
    choosing = [(run.steps.choosing, 0.0) for run in runs]
    deciding = [(run.steps.deciding, run.prompts.deciding + run.steps.deciding) for run in runs]
    encoding = [(run.steps.encoding, run.prompts.encoding + run.steps.encoding) for run in runs]
    return [*both(deciding), *(both(seen) if seen else ("", "")), *both(encoding), both(choosing)[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv", nargs="+", default=EVERY_METHOD)
    parser.add_argument("--model", default="lantern")
    parser.add_argument("--shape", choices=list(SHAPES), help="a random model of this shape instead")
    parser.add_argument("--sequences", type=positive, default=32)
    parser.add_argument("--prompt", type=positive, default=400)
    parser.add_argument("--steps", type=positive, default=65, help="of a multiple of what acts are apart, and one")
    parser.add_argument("--prefix-cache", action="store_true", help="as the engine has it unless told otherwise")
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--threads", type=positive, default=1)
    args = parser.parse_args()
    os.environ["PAGODA_PROFILE"] = "1"  # two readings of the clock a kernel, 50 ns each
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            write_model(Path(folder), SHAPES[args.shape])
            calibrate(Path(folder), args.kv, SHAPES[args.shape])
        with LLM(folder if args.shape else args.model, memory="4GiB", enable_prefix_caching=args.prefix_cache,
                 num_threads=args.threads, max_num_seqs=args.sequences) as llm:  # fmt: skip
            compare(llm, args)


def calibrate(folder: Path, methods: list[str], shape: dict[str, Any]) -> None:
    """Random files for those of the methods that want one."""
    heads, layers, dim = (shape[key] for key in ("num_key_value_heads", "num_hidden_layers", "head_dim"))
    group = shape["num_attention_heads"] // heads
    names = {name for kv in methods for name in parse_policy(kv).names}
    calibrate_at_random(folder, layers, heads, dim, group=group, only=names)


def compare(llm: LLM, args: argparse.Namespace) -> None:
    """Rounds of all methods, each beside its twin, and the table."""
    runs: dict[str, list[Run]] = {kv: [] for kv in args.kv}
    twins: dict[str, list[Run]] = {kv: [] for kv in args.kv}
    for _ in range(args.rounds):
        for kv in args.kv:
            runs[kv].append(serve(llm, kv, args.sequences, args.prompt, args.steps))
            if (twin := twin_of(kv)) is not None:
                twins[kv].append(serve(llm, twin, args.sequences, args.prompt, args.steps))
    twice = " | with prompts | ".join(["deciding", "observing", "encoding", "choosing"])
    print(f"| kv | step | acts a step | {twice} |")
    print("| --- |" + " ---: |" * 9)
    for kv, mine in runs.items():
        step = statistics.median(run.steps.all for run in mine) / args.steps
        acts = statistics.median(run.acts for run in mine) / args.steps
        print(f"| `{kv}` | {1e3 * step:.1f} ms | {acts:.2f} | {' | '.join(cells(kv, mine, twins[kv]))} |", flush=True)


if __name__ == "__main__":
    main()
