"""What a form costs: the same requests free, held to a schema with masks computed ahead, and with masks computed late.

python -m benchmarks.structured --model lantern --batch 32 --rounds 5

The three are interleaved in one process, so that a noisy neighbour hits all of them. Answers have the same length: the
schema is one string that goes on, and free answers ignore the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pagoda import LLM, SamplingParams, Structured
from pagoda.sampling.masks import MaskAhead

FORM = Structured(json_schema={"type": "array", "items": {"type": "string"}, "minItems": 10_000})


@contextmanager
def late_masks() -> Iterator[None]:
    """Nothing is computed ahead: the sampler computes each mask when it needs it."""
    start = MaskAhead.start
    MaskAhead.start = lambda self, states: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        MaskAhead.start = start  # type: ignore[method-assign]


def seconds(llm: LLM, prompts: list[str], params: SamplingParams) -> float:
    """Of one batch; every answer must have all its tokens."""
    started = time.perf_counter()
    outputs = llm.generate(prompts, params)
    taken = time.perf_counter() - started
    assert all(len(output.token_ids) == params.max_tokens for output in outputs), [o.error for o in outputs]
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lantern")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    free = SamplingParams(max_tokens=args.tokens, seed=1, ignore_eos=True)
    held = SamplingParams(max_tokens=args.tokens, seed=1, structured=FORM)
    taken: dict[str, list[float]] = {"free": [], "ahead": [], "late": []}
    with LLM(args.model, memory=args.memory, num_threads=args.threads) as llm:
        prompts = [f"Story number {number}:" for number in range(args.batch)]
        for params in (free, held):
            seconds(llm, prompts, params)
        for _ in range(args.rounds):
            taken["free"].append(seconds(llm, prompts, free))
            taken["ahead"].append(seconds(llm, prompts, held))
            with late_masks():
                taken["late"].append(seconds(llm, prompts, held))
    base = statistics.median(taken["free"])
    for name, times in taken.items():
        middle = statistics.median(times)
        rate, spread = args.batch * args.tokens / middle, f"min {min(times):.3f}, max {max(times):.3f} s"
        print(f"{name:6s} {rate:9.0f} tokens/s  {middle / base:5.3f} x free  ({spread})")


if __name__ == "__main__":
    main()
