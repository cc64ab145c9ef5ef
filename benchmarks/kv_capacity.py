"""How many long sequences one pool holds, and what it answers per second: exact against KV policies, in turns.

    python -m benchmarks.kv_capacity --kv "snapkv(budget=0.25)" "h2o(budget=0.25)" --rounds 3

The pool holds eight exact sequences of 2048 tokens of ``lantern``; requests are ``--length`` tokens long, prompt and
answer (beyond 2048 with a copy of the model whose config allows it: it talks nonsense there, and takes as long as any
would). Each round serves the same number of requests (a long prompt each, no two alike) with exact and with each
policy, under the same scheduling; a first round of eight, which does not count, tells a scheduler that learns from past
answers how long they are. Reported: the most sequences that ran at once, the most pages in use, tokens per second
(prompt and answer; also per second of processor time, which other work on the machine hardly touches), the share of
step time that policies take between steps, and round by round how often as fast as exact it was. ``--answer 1`` tells
what prompts alone take.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from pagoda import LLM, SamplingParams

from .arguments import positive

LENGTH, EXACT = 2048, 8


def with_positions(folder: Path, positions: int) -> Path:
    """``lantern`` with a config that allows so many."""
    import pagoda

    shutil.copytree(Path(pagoda.__file__).parent / "assets" / "lantern", folder / "lantern")
    config = json.loads((folder / "lantern" / "config.json").read_text())
    (folder / "lantern" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return folder / "lantern"


def serve(llm: LLM, kv: str, requests: int, length: int, answer: int, seed: int) -> dict[str, float]:
    """One batch of requests of ``length`` tokens, all submitted at once."""
    built = llm._open()
    engine, rng = built.engine, random.Random(seed)
    prompt_len = length - answer
    params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, kv=kv)
    for index in range(requests):
        ids = [rng.randrange(8, built.loaded.shape.vocab_size) for _ in range(prompt_len)]
        engine.add(llm._intake.request(f"{kv}-{seed}-{index}", ids, params))
    before = engine.counters.policy_seconds, engine.counters.step_seconds
    preempted = engine.scheduler.num_preemptions
    most_at_once = most_pages = 0
    started, worked = time.perf_counter(), time.process_time()
    while engine.has_work:
        engine.step()
        # Only sequences whose prompt is complete count: one in prefill may still be put back.
        at_once = sum(s.num_computed >= s.prompt_len for s in engine.scheduler.running.values())  # type: ignore[attr-defined]
        most_at_once = max(most_at_once, at_once)
        most_pages = max(most_pages, engine.manager.pool.num_used_pages)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    policy = engine.counters.policy_seconds - before[0]
    return {
        "at_once": most_at_once,
        "pages": most_pages,
        "preempted": engine.scheduler.num_preemptions - preempted,
        "tokens_per_s": requests * length / seconds,
        "tokens_per_processor_s": requests * length / worked,
        "policy_share": policy / (engine.counters.step_seconds - before[1]),
    }


def compare(args: argparse.Namespace, model: str) -> None:
    """Serves by both in turns, and prints what came of it."""
    with LLM("lantern", memory="2GiB") as probe:
        fmt = probe._open().sizes.fmt
    blocks = EXACT * fmt.blocks_for(LENGTH)
    llm = LLM(model, memory="4GiB", kv_memory=blocks * fmt.block_bytes, enable_prefix_caching=False,
              num_threads=args.threads, scheduling=args.scheduling)  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {"exact": []} | {kv: [] for kv in args.kv}
    serve(llm, "exact", 8, args.length, args.answer, -1)
    for round_ in range(args.rounds):
        for kv, runs in found.items():
            runs.append(serve(llm, kv, args.requests, args.length, args.answer, round_))
    llm.close()
    print(f"{args.requests} x {args.length} tokens, answers {args.answer}; {blocks * fmt.pages_per_block} pages")
    print("\n".join(table(found)))


def table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """A row a method: medians, and how often as fast as exact in each round, by the clock and by processor time."""
    lines = ["| kv | at once | most pages | preempted | tokens/s | policies | beside exact | by processor time |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for kv, runs in found.items():
        one = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        cells = [f"{one[key]:.0f}" for key in ("at_once", "pages", "preempted", "tokens_per_s")]
        cells.append(f"{one['policy_share']:.1%}")
        for rate in ("tokens_per_s", "tokens_per_processor_s"):
            ratios = [mine[rate] / exact[rate] for mine, exact in zip(runs, found["exact"], strict=True)]
            cells.append(" ".join(f"{ratio:.2f}x" for ratio in ratios))
        lines.append(f"| `{kv}` | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv", nargs="+", default=["snapkv(budget=0.25)"])
    parser.add_argument("--requests", type=positive, default=40)
    parser.add_argument("--length", type=positive, default=LENGTH)
    parser.add_argument("--answer", type=positive, default=48)
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--scheduling", default="fcfs", help="who is admitted when, for both")
    parser.add_argument("--threads", type=positive, default=None, help="default: all cores")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(args, "lantern" if args.length <= LENGTH else str(with_positions(Path(folder), args.length)))


if __name__ == "__main__":
    main()
