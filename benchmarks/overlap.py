"""What it brings that text is made beside the next step: ``python -m benchmarks.overlap MODEL --batch 32``.

Streams are read from asyncio, as by the server. Three ways take turns in one process: text made by its readers while
the next step runs (as it is), by the engine's thread between two steps, and there because each request has a stop
string, which never comes: its text decides whether the sequence goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from statistics import median, quantiles

from pagoda import AsyncLLM, SamplingParams
from pagoda.engine.outputs import RequestOutput

from .arguments import positive
from .step import add_engine_options

NEVER = "\u0001 no text of a model \u0001"
WAYS = ("beside", "between", "stop string")


class Between(AsyncLLM):
    """Text is made before outputs leave the engine's thread, where ``told``."""

    told = False

    def _send(self, outputs: list[RequestOutput]) -> None:
        if self.told:
            for output in outputs:
                output.tell()
        super()._send(outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--prompt", type=positive, default=32)
    parser.add_argument("--tokens", type=positive, default=96, help="tokens of each answer")
    parser.add_argument("--rounds", type=positive, default=9)
    add_engine_options(parser)
    asyncio.run(measure(parser.parse_args()))


async def measure(args: argparse.Namespace) -> None:
    llm = Between(
        args.model, memory=args.memory, num_threads=args.threads, max_num_seqs=args.batch,
        quantization=args.quantization, kv_cache_dtype=args.kv_cache_dtype,
        max_model_len=args.prompt + args.tokens + 16,
    )  # fmt: skip
    async with llm:
        rng, vocab = random.Random(0), llm.loaded.shape.vocab_size
        prompts = [[rng.randrange(5, vocab - 5) for _ in range(args.prompt)] for _ in range(args.batch)]
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(args.rounds + 1):
            for way in WAYS[turn % 3 :] + WAYS[: turn % 3]:
                llm.told = way == "between"
                params = SamplingParams(
                    temperature=0, max_tokens=args.tokens, ignore_eos=True, stop=NEVER if way == "stop string" else None
                )
                seconds = await decode_seconds(llm, prompts, params)
                if turn:
                    times[way].append(seconds / (args.tokens - 1) * 1e3)
    for way in WAYS:
        ratios = [one / other for one, other in zip(times[way], times["beside"], strict=True)]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(f"{median(times[way]):8.3f} ms a step of {args.batch}  {middle:.3f} ({low:.3f} to {high:.3f})  {way}")


async def decode_seconds(llm: AsyncLLM, prompts: list[list[int]], params: SamplingParams) -> float:
    """From the moment at which all have their first token until the last answer ends."""
    began: list[float] = []

    async def read(prompt: list[int]) -> None:
        first = True
        async for _ in llm.generate(prompt, params):
            if first:
                began.append(time.perf_counter())
                first = False

    await asyncio.gather(*(read(prompt) for prompt in prompts))
    return time.perf_counter() - max(began)


if __name__ == "__main__":
    main()
