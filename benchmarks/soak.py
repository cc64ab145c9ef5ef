"""Hundreds of mixed requests through AsyncLLM in a small budget, checked against runs one by one.

    python benchmarks/soak.py --requests 500 --memory 420MiB --kv-memory 9MiB

Lengths are 1 to 3000 tokens (what the context cannot hold must be refused, not lost), some share a prefix, some are
aborted, and the pool holds little more than one full context, so that sequences push each other out. Exit code 1
unless: every request ended, the tokens equal those of single runs, the auditor balances, RSS is flat from request 100
on, and the peak below the budget.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass

from pagoda import LLM, AsyncLLM, RequestError, SamplingParams
from pagoda.budget import MachineProbe
from pagoda.core.types import FinishReason
from pagoda.core.units import parse_bytes


@dataclass
class Work:
    ids: list[int]
    max_tokens: int
    gives_up_after: int | None
    delay: float


def make_work(num: int, vocab: int, seed: int, seconds: float) -> list[Work]:
    rng = random.Random(seed)
    prefixes = [[rng.randrange(300, vocab) for _ in range(600)] for _ in range(4)]
    work = []
    for _ in range(num):
        length = min(3000, max(1, round(rng.lognormvariate(4.6, 1.4))))
        ids = [rng.randrange(300, vocab) for _ in range(length)]
        if rng.random() < 0.3:
            ids = [*rng.choice(prefixes)[: rng.randrange(16, 600)], *ids[:200]]
        gives_up = rng.randrange(1, 20) if rng.random() < 0.1 else None
        work.append(Work(ids, rng.randrange(1, 200), gives_up, rng.random() * seconds))
    return work


def params(item: Work) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=item.max_tokens, ignore_eos=True)


async def crowd(args: argparse.Namespace, work: list[Work]) -> tuple[list[object], dict, list[int], int]:
    """Answers (or refusals) in the order of ``work``, the engine's statistics, RSS at every end, the context."""
    probe, rss, done = MachineProbe(), [], 0

    async def one(llm: AsyncLLM, item: Work) -> object:
        nonlocal done
        await asyncio.sleep(item.delay)
        last: object = None
        stream = llm.generate(item.ids, params(item))
        try:
            async for last in stream:
                if item.gives_up_after is not None and len(last.token_ids) >= item.gives_up_after:
                    break
        except RequestError as error:
            last = error
        await stream.aclose()
        done += 1
        rss.append(probe.rss())
        if sys.stderr.isatty():
            print(f"\r{done}/{len(work)}", end="", file=sys.stderr)
        return last

    options = {"memory": args.memory, "kv_memory": args.kv_memory, "max_num_seqs": 32, "max_num_batched_tokens": 512}
    async with AsyncLLM("lantern", **options) as llm:
        answers = await asyncio.gather(*(one(llm, item) for item in work))
        await llm.audit()
        return answers, await llm.stats(), rss, llm.max_model_len


def check(work: list[Work], answers: list[object], context: int) -> tuple[Counter, list[int]]:
    """Compare with single runs; the outcome of each request counted, and the indices of wrong ones.

    ``context``: what the small budget left of the model's context; longer prompts had to be refused, no others.
    """
    outcomes: Counter = Counter()
    wrong = []
    with LLM("lantern", enable_prefix_caching=False) as llm:
        for index, (item, answer) in enumerate(zip(work, answers, strict=True)):
            if isinstance(answer, RequestError):
                outcomes["refused"] += 1
                if len(item.ids) < context:
                    wrong.append(index)
                continue
            outcomes[str(answer.finish_reason or "aborted")] += 1
            expected = llm.generate([item.ids], params(item))[0].token_ids
            got = answer.token_ids
            complete = item.gives_up_after is not None or answer.finish_reason is FinishReason.LENGTH
            if not complete or got != expected[: len(got)]:
                wrong.append(index)
    return outcomes, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--memory", default="420MiB")
    parser.add_argument("--kv-memory", default="9MiB", help="the pool; 8 MiB is lantern's whole context")
    parser.add_argument("--seconds", type=float, default=30.0, help="arrivals are spread over so long")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    work = make_work(args.requests, 2048, args.seed, args.seconds)
    started = time.perf_counter()
    answers, stats, rss, context = asyncio.run(crowd(args, work))
    seconds = time.perf_counter() - started
    peak = stats["memory"]["peak_rss_bytes"]  # before the single runs, which have a budget of their own
    outcomes, wrong = check(work, answers, context)
    later = rss[min(100, len(rss) // 2) :]
    result = {
        "requests": len(work),
        "seconds": round(seconds, 1),
        "context": context,
        "outcomes": dict(outcomes),
        "wrong": wrong,
        "preemptions": stats["queue"]["preemptions"],
        "prefix_hit_pages": stats["kv"]["prefix"]["num_hit_pages"],
        "rss_mib_from_request_100": [round(min(later) / 2**20, 1), round(max(later) / 2**20, 1)],
        "rss_growth": round(max(later) / later[0] - 1, 4),
        "peak_mib": round(peak / 2**20, 1),
        "budget_mib": round(parse_bytes(args.memory) / 2**20, 1),
        "unaccounted_share": stats["memory"]["unaccounted_share"],
    }
    print(json.dumps(result, indent=1))
    good = not wrong and len(answers) == len(work) and peak <= parse_bytes(args.memory) and result["rss_growth"] < 0.02
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
