"""Hundreds of mixed requests through AsyncLLM in a small budget, checked against runs one by one.

    python -m benchmarks.soak --requests 500 --memory 420MiB --kv-memory 9MiB
    python -m benchmarks.soak --kv all --memory 900MiB --kv-memory 3MiB --minutes 20 --vary

Lengths are 1 to 3000 tokens (what the context cannot hold must be refused, not lost), some share a prefix, some are
aborted, and the pool holds little more than one full context, so that sequences push each other out. ``--kv all``
draws a composition of methods for each request, and sampling, n, stop texts, penalties, logprobs and forms with it;
``--vary`` draws the engine of each round as well: formats, scheduling, sizes, tiers. ``--minutes`` repeats rounds, each
with the next seed, until the time is over.

Compared with a run alone (same formats and page size, no prefix cache, all the room there is): tokens, texts, reasons
and logprobs are equal, bit for bit, in 16 bits too; a client that left has the beginning.
A request that the small pool refuses, or that ends in an error, must fail once more, alone in the same engine.

Exit code 1 unless: every request ended, no answer differs, the auditor balances, nothing is held afterwards, and the
peak stays below the budget; without ``--kv``, RSS is also flat from request 100 on.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pagoda import LLM, AsyncLLM, ConfigError, RequestError, RequestOutput
from pagoda.budget import MachineProbe
from pagoda.core.types import FinishReason
from pagoda.core.units import parse_bytes
from pagoda.sampling.logprobs import TokenLogprob

from .mixed_work import AnyParams, Work, make_work, plain_params, random_options

Answer = RequestOutput | RequestError | ConfigError | None
NUMBERS = ("page_size", "kv_cache_dtype", "quantization", "dtype")
"""Options of the engine that answers may depend on."""


@dataclass
class Crowd:
    """What a round left: answers in the order of the work, and ``again``, by index, of those that were refused."""

    answers: list[Answer]
    again: dict[int, Answer] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    rss: list[int] = field(default_factory=list)
    context: int = 0


async def ask(llm: AsyncLLM, item: Work, *, stays: bool = False) -> Answer:
    last: Answer = None
    stream = llm.generate(item.ids, item.params, salt=item.salt)
    try:
        async for last in stream:
            if not stays and item.gives_up_after is not None and len(last.token_ids) >= item.gives_up_after:
                break
    except (RequestError, ConfigError) as error:
        last = error
    await stream.aclose()
    return last


async def crowd(model: str, work: list[Work], options: dict[str, Any], done: Callable[[], None]) -> Crowd:
    probe, rss = MachineProbe(), []

    async def one(llm: AsyncLLM, item: Work) -> Answer:
        await asyncio.sleep(item.delay)
        answer = await ask(llm, item)
        done()
        rss.append(probe.rss())
        return answer

    async with AsyncLLM(model, **options) as llm:
        answers = await asyncio.gather(*(one(llm, item) for item in work))
        await llm.audit()
        failed = [index for index, answer in enumerate(answers) if failure(answer)]
        again = {index: await ask(llm, work[index], stays=True) for index in failed}
        await idle(llm)
        await llm.audit()
        return Crowd(answers, again, await llm.stats(), rss, llm.max_model_len)


async def idle(llm: AsyncLLM) -> None:
    """Until what runs for itself (``shadow``) is done; what is held for a minute is a fault, and ``held`` names it."""
    ends = time.monotonic() + 60
    while (held(stats := await llm.stats()) or stats["shadow"]["pending"]) and time.monotonic() < ends:
        await asyncio.sleep(0.05)


def failure(answer: Answer) -> str:
    """Why there is no answer, or nothing."""
    if isinstance(answer, (RequestError, ConfigError)):
        return f"{type(answer).__name__}: {answer}"
    return (answer.error or "") if answer is not None else ""


def difference(item: Work, got: RequestOutput, wanted: RequestOutput) -> str:
    """The first thing that a client sees otherwise than alone, or nothing."""
    complete = item.gives_up_after is None or got.finished
    for index, (mine, alone) in enumerate(zip(got.outputs, wanted.outputs, strict=True)):
        size = len(mine.token_ids)
        if mine.token_ids != alone.token_ids[: None if complete else size]:
            pairs = zip(mine.token_ids, alone.token_ids, strict=False)
            at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(size, len(alone.token_ids)))
            return f"answer {index}: token {at} of {size}, alone {len(alone.token_ids)}"
        for name in ("finish_reason", "text"):
            if complete and getattr(mine, name) != getattr(alone, name):
                return f"answer {index}: {name} {getattr(mine, name)!r}, alone {getattr(alone, name)!r}"
        if apart := farthest(mine.logprobs, alone.logprobs):
            return f"answer {index}: logprobs {apart:.2g} apart"
    apart = farthest(got.prompt_logprobs, wanted.prompt_logprobs)
    return f"prompt_logprobs {apart:.2g} apart" if apart else ""


def farthest(mine: Sequence[TokenLogprob | None] | None, alone: Sequence[TokenLogprob | None] | None) -> float:
    """Of the tokens that both have."""
    pairs = zip(mine or (), alone or (), strict=False)
    return max((abs(a.logprob - b.logprob) for a, b in pairs if a is not None and b is not None), default=0.0)


def check(model: str, work: list[Work], found: Crowd, options: dict[str, Any]) -> tuple[Counter[str], dict[int, str]]:
    """Compare with single runs; the outcome of each request counted, and what is wrong with which."""
    outcomes, wrong = Counter[str](), {}
    numbers = {name: value for name, value in options.items() if name in NUMBERS}
    alone = {"enable_prefix_caching": False, "max_model_len": found.context, "kv_offload": options.get("kv_offload")}
    with LLM(model, **alone | numbers) as llm:
        for index, (item, answer) in enumerate(zip(work, found.answers, strict=True)):
            if answer is None:
                wrong[index] = "no answer"
            elif why := failure(answer):
                outcomes["refused" if isinstance(answer, Exception) else "error"] += 1
                again = failure(found.again[index])
                room = found.context if not options.get("kv_offload") else 0  # a context that only offloaded KV has
                if not again or not is_for_room(item, room):
                    wrong[index] = f"{why}; alone in the same pool: {again or 'answered'}"
            else:
                outcomes[str(answer.finish_reason or FinishReason.ABORT)] += 1
                try:
                    wrong[index] = difference(item, answer, llm.generate([item.ids], item.params)[0])
                except (RequestError, ConfigError) as error:
                    wrong[index] = f"answered; alone {error}"
    return outcomes, {index: what for index, what in wrong.items() if what}


def is_for_room(item: Work, context: int) -> bool:
    """Whether an exact request of this length may be refused at all; methods have reasons of their own."""
    return item.params.kv not in (None, "exact") or len(item.ids) >= context


def held(stats: dict[str, Any]) -> dict[str, int]:
    """What the engine still has of requests that are gone."""
    kv = stats["kv"]
    left = {"sequences": kv["num_sequences"], "policies": kv["policy_bytes"]}
    left |= {name: stats["queue"][name] for name in ("running", "waiting")}
    return {name: value for name, value in left.items() if value}


def play(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One round: what was done with which engine, and what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"memory": args.memory, "kv_memory": args.kv_memory}
        options |= {"max_num_seqs": 32, "max_num_batched_tokens": 512}
        if args.vary:
            options |= random_options(random.Random(seed), folder)
        options |= dict(args.option)
        work = make_work(
            args.requests, (300, 2048), seed, seconds=args.seconds, longest=args.longest, most_tokens=args.most_tokens,
            params=AnyParams(args.kv, offloads="kv_offload" in options) if args.kv else plain_params,
        )  # fmt: skip
        started = time.perf_counter()
        with bar(f"round {seed}", len(work)) as done:
            found = asyncio.run(asyncio.wait_for(crowd(args.model, work, options, done), args.hang_seconds))
    seconds = time.perf_counter() - started
    stats = found.stats  # taken before the single runs, which have a budget of their own
    outcomes, wrong = check(args.model, work, found, options)
    peak, later = stats["memory"]["peak_rss_bytes"], found.rss[min(100, len(found.rss) // 2) :]
    result = {
        "seed": seed,
        "options": {name: value for name, value in options.items() if value != folder},
        "requests": len(work),
        "seconds": round(seconds, 1),
        "context": found.context,
        "outcomes": dict(outcomes),
        "wrong": {
            index: {"what": what, "kv": work[index].params.kv, "prompt": len(work[index].ids)}
            for index, what in wrong.items()
        },
        "held": held(stats),
        "preemptions": stats["queue"]["preemptions"],
        "prefix_hit_pages": stats["kv"]["prefix"]["num_hit_pages"],
        "rss_mib_from_request_100": [round(min(later) / 2**20, 1), round(max(later) / 2**20, 1)],
        "rss_growth": round(max(later) / later[0] - 1, 4),
        "peak_mib": round(peak / 2**20, 1),
        "budget_mib": round(parse_bytes(args.memory) / 2**20, 1),
        "unaccounted_share": stats["memory"]["unaccounted_share"],
    }
    within = peak <= parse_bytes(args.memory) and (bool(args.kv) or result["rss_growth"] < 0.02)
    return result | {"good": not wrong and not result["held"] and within}


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """``done()`` draws on a terminal's stderr, and says nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as drawn:
        task = drawn.add_task(what, total=total)
        yield lambda: drawn.update(task, advance=1)


def option(text: str) -> tuple[str, Any]:
    """``name=value`` of ``LLM``; numbers, booleans and None are read as Python does, the rest is text."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="lantern")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--memory", default="420MiB")
    parser.add_argument("--kv-memory", default="9MiB", help="the pool; 8 MiB is lantern's whole context")
    parser.add_argument("--seconds", type=float, default=30.0, help="arrivals are spread over so long")
    parser.add_argument("--longest", type=int, default=3000, help="tokens of a prompt")
    parser.add_argument("--most-tokens", type=int, default=200, help="tokens of an answer")
    parser.add_argument("--kv", nargs="+", default=[], help="all, or methods to draw from")
    parser.add_argument("--option", type=option, action="append", default=[], help="NAME=VALUE, more of the engine's")
    parser.add_argument("--vary", action="store_true", help="draw the engine's options as well")
    parser.add_argument("--minutes", type=float, default=0.0, help="more rounds until so much time is over")
    parser.add_argument("--hang-seconds", type=float, default=600.0, help="a round that takes longer hangs")
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--json", metavar="FILE", help="write all rounds there as well")
    args = parser.parse_args(argv)
    ends, rounds = time.monotonic() + 60 * args.minutes, []
    while not rounds or time.monotonic() < ends:
        rounds.append(play(args, args.seed + len(rounds)))
        print(json.dumps(rounds[-1], indent=1), flush=True)
        if args.json:
            with open(args.json, "w") as file:
                json.dump(rounds, file, indent=1)
    return 0 if all(one["good"] for one in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
