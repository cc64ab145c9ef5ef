"""What a restart costs with and without kept prefixes.

    python -m benchmarks.kv_restart FOLDER_OF_A_MODEL --prompt 2000
    python -m benchmarks.kv_restart lantern --trace ../shared/data/traces/mooncake_conversation.jsonl.gz

With ``--prompt``: time to first token of a prompt computed, and of the same prompt read from disk by a new engine, in
turns. With ``--trace``: the prefix hit rate of a conversation trace, scaled down to 16 tokens a block of 512, of its
second half when the engine was restarted in the middle, beside the engine that was not.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pagoda import LLM, SamplingParams

ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kv_restart", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--requests", type=int, default=400)
    args = parser.parse_args()
    if args.trace:
        print(json.dumps(hit_rates(args.model, args.memory, args.trace, args.requests), indent=1))
    else:
        print(json.dumps(first_tokens(args.model, args.memory, args.prompt, args.rounds), indent=1))


def first_tokens(model: str, memory: str, length: int, rounds: int) -> dict[str, object]:
    """Seconds to the first token: computed, and read after a restart."""
    computed, read = [], []
    for number in range(rounds):
        ids = [random.Random(number).randrange(3, 2000) for _ in range(length)]
        with tempfile.TemporaryDirectory() as folder:
            for found in (computed, read):
                with LLM(model, memory=memory, kv_dir=folder, structured_output=False) as llm:
                    llm.generate([[5] * 64], ONE)  # code and memory that a served engine has touched
                    started = time.perf_counter()
                    output = llm.generate([ids], ONE)[0]
                    found.append(time.perf_counter() - started)
                    cached = output.usage.cached_tokens
            assert cached >= length - 17, f"{cached} of {length} tokens were read"
    ratio = statistics.median(r / c for r, c in zip(read, computed, strict=True))
    return {"prompt": length, "computed_seconds": computed, "read_seconds": read, "read_over_computed": round(ratio, 4)}


def hit_rates(model: str, memory: str, trace: Path, count: int) -> dict[str, float]:
    """Cached share of prompt tokens in the second half of the trace, by whether the engine was restarted before it."""
    asked = list(prompts(trace, count))
    half, rates = len(asked) // 2, {}
    for restarted in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            llm = LLM(model, memory=memory, kv_dir=folder, structured_output=False)
            run(llm, asked[:half])
            if restarted:
                llm.close()
                llm = LLM(model, memory=memory, kv_dir=folder, structured_output=False)
            rates["restarted" if restarted else "running on"] = round(run(llm, asked[half:]), 4)
            llm.close()
    return rates


def prompts(trace: Path, count: int, *, most: int = 96) -> Iterator[list[int]]:
    """16 tokens for each block of the trace, the same tokens for the same block."""
    with gzip.open(trace, "rt") as lines:
        for line, _ in zip(lines, range(count), strict=False):
            blocks = json.loads(line)["hash_ids"][:most]
            yield [random.Random(f"{block}/{at}").randrange(3, 2000) for block in blocks for at in range(16)] + [7]


def run(llm: LLM, asked: list[list[int]]) -> float:
    outputs = [llm.generate([ids], ONE)[0] for ids in asked]
    return sum(o.usage.cached_tokens for o in outputs) / sum(o.usage.prompt_tokens for o in outputs)


if __name__ == "__main__":
    main()
