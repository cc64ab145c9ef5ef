"""What a long context adds to a decode step: ``python -m benchmarks.context MODEL --lengths 128 4096``.

One engine, so that the weights lie where they lie; the prompts are in the prefix cache after the first round, and the
lengths take turns, so that every pair of neighbours sees the machine of the same second. Steps are divided into
attention, products, other kernels and what is outside of kernels (``PAGODA_PROFILE=1``, as `benchmarks.step`).
"""

from __future__ import annotations

import argparse
import os
import random
from statistics import median, quantiles
from typing import TYPE_CHECKING

from .arguments import positive
from .step import WARM_STEPS, add_engine_options, profiles

if TYPE_CHECKING:
    from pagoda.engine.build import Built
    from pagoda.engine.profile import Profile

PARTS = ("attention", "products", "other kernels", "outside of kernels", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--lengths", type=positive, nargs=2, default=[128, 4096], help="tokens of the prompts")
    parser.add_argument("--batch", type=positive, default=1, help="sequences that decode together")
    parser.add_argument("--rounds", type=positive, default=12)
    parser.add_argument("--steps", type=positive, default=16, help="decode steps of each length and round")
    add_engine_options(parser)
    args = parser.parse_args()
    os.environ["PAGODA_PROFILE"] = "1"
    run(args)


def run(args: argparse.Namespace) -> None:
    from pagoda.engine.build import build
    from pagoda.engine.config import EngineConfig

    longest = max(args.lengths) + args.steps + WARM_STEPS + 32
    built = build(
        EngineConfig(
            args.model, memory=args.memory, num_threads=args.threads, max_num_seqs=args.batch, max_model_len=longest,
            quantization=args.quantization, kv_cache_dtype=args.kv_cache_dtype, max_num_batched_tokens=2048,
        )
    )  # fmt: skip
    rng, vocab = random.Random(0), built.loaded.shape.vocab_size
    prompts = {
        length: [[rng.randrange(5, vocab - 5) for _ in range(length)] for _ in range(args.batch)]
        for length in args.lengths
    }
    for length in args.lengths:
        decode(built, prompts[length], 1)
    rounds = [{n: parts_of(decode(built, prompts[n], args.steps)) for n in args.lengths} for _ in range(args.rounds)]
    show(rounds, *args.lengths)
    built.close()


def decode(built: Built, prompts: list[list[int]], steps: int) -> list[Profile]:
    """The profiles of ``steps`` decode steps of these prompts together."""
    from pagoda import SamplingParams
    from pagoda.engine.intake import Intake

    engine, params = built.engine, SamplingParams(temperature=0, max_tokens=steps + WARM_STEPS + 16, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.add(Intake(built).request(f"r{index}", prompt, params, stream=True))
    found = profiles(built, steps)
    for index in range(len(prompts)):
        engine.abort(f"r{index}")
    return found


def parts_of(steps: list[Profile]) -> dict[str, float]:
    """Medians in milliseconds."""
    each: dict[str, list[float]] = {part: [] for part in PARTS}
    for step in steps:
        products = sum(seconds for name, (_, seconds) in step.kernels.items() if name.startswith("linear"))
        attention = step.kernels["attention"][1]
        others = sum(seconds for _, seconds in step.kernels.values()) - products - attention
        found = (attention, products, others, step.outside_seconds, step.step_seconds)
        for part, seconds in zip(PARTS, found, strict=True):
            each[part].append(seconds * 1e3)
    return {part: median(found) for part, found in each.items()}


def show(rounds: list[dict[int, dict[str, float]]], short: int, long: int) -> None:
    """Medians over rounds, and of what the longer context adds within a round."""
    print(f"{'ms a step':20} {short:>9} {long:>9}     adds  quartiles")
    for part in PARTS:
        added = [one[long][part] - one[short][part] for one in rounds]
        low, middle, high = quantiles(added, n=4) if len(added) > 1 else added * 3
        usual = [median(one[length][part] for one in rounds) for length in (short, long)]
        print(f"{part:20} {usual[0]:9.3f} {usual[1]:9.3f} {middle:8.3f}  {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
