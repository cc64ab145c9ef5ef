"""Where a decode step's time goes: ``python -m benchmarks.step MODEL --batch 8``.

Greedy sequences of random tokens decode together in this process; kernels are timed one by one
(``PAGODA_PROFILE=1``), so the step is a few microseconds longer than usual. "Outside of kernels" is what none accounts
for: Python, allocation, the scheduler.
"""

from __future__ import annotations

import argparse
import os
import random
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from .arguments import positive

if TYPE_CHECKING:
    from pagoda.engine.build import Built
    from pagoda.engine.profile import Profile

WARM_STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--batch", type=positive, default=1, help="sequences that decode together")
    parser.add_argument("--prompt", type=positive, default=128, help="tokens of each prompt")
    parser.add_argument("--shared", type=int, default=0, help="leading tokens that all prompts have in common, cached")
    parser.add_argument("--steps", type=positive, default=32, help="decode steps that are counted")
    add_engine_options(parser)
    args = parser.parse_args()
    if not 0 <= args.shared < args.prompt:
        parser.error(f"--shared {args.shared} of prompts of {args.prompt} tokens; accepted: 0 to {args.prompt - 1}")
    os.environ["PAGODA_PROFILE"] = "1"
    run(args)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Those of every benchmark that steps one engine in this process."""
    parser.add_argument("--threads", type=positive, default=None)
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--memory", default="6GiB")


def run(args: argparse.Namespace) -> None:
    from pagoda import SamplingParams
    from pagoda.engine.build import build
    from pagoda.engine.config import EngineConfig
    from pagoda.engine.intake import Intake

    config = EngineConfig(
        args.model, memory=args.memory, num_threads=args.threads, enable_prefix_caching=args.shared > 0,
        max_num_seqs=args.batch, quantization=args.quantization, kv_cache_dtype=args.kv_cache_dtype,
        max_model_len=args.prompt + args.steps + 16, max_num_batched_tokens=max(2048, args.batch),
    )  # fmt: skip
    built = build(config)
    engine, intake = built.engine, Intake(built)
    rng, vocab = random.Random(0), built.loaded.shape.vocab_size
    params = SamplingParams(temperature=0, max_tokens=args.steps + 8, ignore_eos=True)
    prefix = [rng.randrange(5, vocab - 5) for _ in range(args.shared)]
    if prefix:  # computed before the others ask for it
        engine.add(intake.request("prefix", prefix, SamplingParams(temperature=0, max_tokens=1), stream=True))
        while engine.has_work:
            engine.step()
    for index in range(args.batch):
        prompt = prefix + [rng.randrange(5, vocab - 5) for _ in range(args.prompt - args.shared)]
        engine.add(intake.request(f"r{index}", prompt, params, stream=True))
    show(profiles(built, args.steps), args.batch)
    built.close()


def profiles(built: Built, steps: int) -> list[Profile]:
    """Of ``steps`` decode steps, once everybody has said a few tokens."""
    warm_up(built)
    sums = [profile_of(built)]
    for _ in range(steps):
        built.engine.step()
        sums.append(profile_of(built))
    return [after.since(before) for before, after in pairwise(sums)]


def warm_up(built: Built, tokens: int = WARM_STEPS) -> None:
    """Steps until everybody has said so many."""
    scheduler = built.engine.scheduler
    while scheduler.waiting or any(s.num_output < tokens for s in scheduler.running.values()):
        built.engine.step()


def profile_of(built: Built) -> Profile:
    found = built.profile()
    assert found is not None
    return found


def show(steps: list[Profile], batch: int) -> None:
    """Median and least of each part; on a machine that others use, the least is nearer to what the part costs."""
    parts = {name: [step.kernels[name][1] for step in steps if name in step.kernels] for name in steps[0].kernels}
    parts["outside of kernels"] = [step.outside_seconds for step in steps]
    whole = [step.step_seconds for step in steps]
    usual = median(whole)
    print(f"{'median ms':>10} {'':>6} {'least ms':>9}  a step of {batch}: {batch / usual:.1f} tokens/s")
    for name, seconds in sorted(parts.items(), key=lambda part: -median(part[1])):
        share = median(seconds) / usual
        print(f"{median(seconds) * 1e3:10.3f} {share:6.1%} {min(seconds) * 1e3:9.3f}  {name}")
    print(f"{usual * 1e3:10.3f} {1:6.1%} {min(whole) * 1e3:9.3f}  all")


if __name__ == "__main__":
    main()
