"""What deciding and compacting cost beside a decode step, with many sequences at once.

    python -m benchmarks.kv_overhead --kv "h2o(budget=0.25)" "snapkv(budget=0.25)" --sequences 32
    python -m benchmarks.kv_overhead --shape 0.5B --prompt 128 --steps 33

Prompts are computed, then ``--steps`` steps bring one token to each sequence. *deciding* is the time in which policies
observe, choose and move slots, of the time of those steps; *with prompts* the same from the first prompt on, which is
where methods act that compress a prompt once. Ratios within one run, so that other work on the machine touches both
alike; medians of ``--rounds`` runs, in turns. *choosing* is what selections cost, which choose pages within a step: the
arrays of the choice, scores, and the choice itself. ``--shape 0.5B`` is a random model of that shape, whose steps take
long.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from pagoda import LLM, SamplingParams

from .kv_selection import write_model
from .step import profile_of

EVERY_METHOD = [
    "streaming_llm", "recent", "h2o", "scissorhands", "corm", "hashevict", "scope", "razor_attention", "snapkv",
    "finch", "compresskv", "zigzagkv", "bfp_outlier_rearrange", "quest", "loki", "sparq", "duo_attention", "alisa",
    "attendre", "elastic_cache", "kvmerger", "subgen", "less", "locret", "windowkv", "random", "int2", "kivi",
    "zipcache", "think", "csr", "coupled_quantization", "eigen_attention", "kv_heads_compress", "chai", "lserve",
    "shadowkv", "tokenselect", "clusterkv", "lychee_decode", "a2ats", "ltri_llm", "longcache",
]  # fmt: skip


CHOOSING = ("page choice", "choosers")  # as a profile calls it


def share(llm: LLM, kv: str, sequences: int, prompt: int, steps: int) -> tuple[float, float, float, float, float]:
    """(milliseconds of a step, acts in a step, share of deciding, the same with prompts, share of choosing pages)."""
    built = llm._open()
    engine, rng = built.engine, random.Random(kv)
    params = SamplingParams(temperature=0, max_tokens=steps + 64, ignore_eos=True, kv=kv)
    for index in range(sequences):
        ids = [rng.randrange(8, built.loaded.shape.vocab_size) for _ in range(prompt)]
        engine.add(llm._intake.request(f"{kv}-{index}", ids, params))
    began, at_first = time.perf_counter(), engine.counters.policy_seconds
    while len(engine.scheduler.running) < sequences or any(
        s.num_tokens < s.prompt_len + 2
        for s in engine.scheduler.running.values()  # type: ignore[attr-defined]
    ):
        engine.step()
    before = engine.counters.policy_seconds, engine.counters.policy_acts
    profile = profile_of(built)
    started = time.perf_counter()
    for _ in range(steps):
        engine.step()
    now = time.perf_counter()
    seconds, with_prompts = now - started, (engine.counters.policy_seconds - at_first) / (now - began)
    acts, deciding = engine.counters.policy_acts - before[1], engine.counters.policy_seconds - before[0]
    kernels = profile_of(built).since(profile).kernels
    choosing = sum(kernels[name][1] for name in CHOOSING if name in kernels)
    for request_id in list(engine._requests):
        engine.abort(request_id)
    engine.step()
    return 1e3 * seconds / steps, acts / steps, deciding / seconds, with_prompts, choosing / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv", nargs="+", default=EVERY_METHOD)
    parser.add_argument("--model", default="lantern")
    parser.add_argument("--shape", choices=["0.5B"], help="a random model of this shape instead")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=400)
    parser.add_argument("--steps", type=int, default=65, help="a multiple of what methods wait between acts, and one")
    parser.add_argument("--prefix-cache", action="store_true", help="as the engine has it unless told otherwise")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    os.environ["PAGODA_PROFILE"] = "1"  # two readings of the clock a kernel, 50 ns each
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            write_model(Path(folder))
        with LLM(folder if args.shape else args.model, memory="4GiB", enable_prefix_caching=args.prefix_cache,
                 num_threads=args.threads, max_num_seqs=args.sequences) as llm:  # fmt: skip
            print("| kv | step | acts a step | deciding | with prompts | choosing |")
            print("| --- | ---: | ---: | ---: | ---: | ---: |")
            runs: dict[str, list[tuple[float, ...]]] = {kv: [] for kv in args.kv}
            for _ in range(args.rounds):
                for kv, mine in runs.items():
                    mine.append(share(llm, kv, args.sequences, args.prompt, args.steps))
            for kv, mine in runs.items():
                step, acts, *shares = (statistics.median(values) for values in zip(*mine, strict=True))
                cells = " | ".join(f"{one:.1%}" for one in shares)
                print(f"| `{kv}` | {step:.1f} ms | {acts:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
