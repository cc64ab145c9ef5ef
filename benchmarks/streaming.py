"""A model larger than its budget, against its disk: `python -m benchmarks.streaming MODEL --memory 1200MiB`.

Rounds of two measurements beside each other, so that both see the same machine: the disk's rate by plain direct reads
of the same file, and steps of the model with some sequences at once. What counts is the share of the disk's rate that a
step turns into tokens: bytes that a step has to read, over its time, over the rate. Run it inside a cgroup with the
budget as its limit, and the page cache cannot help.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from pagoda import LLM, SamplingParams
from pagoda.weights.direct import CHUNK_BYTES, DirectFile, aligned_buffer, span_bytes


def disk_rate(file: Path, num_bytes: int) -> float:
    """Bytes a second of direct reads, one after the other."""
    reader, buffer = DirectFile(file), aligned_buffer(span_bytes(CHUNK_BYTES))
    num_bytes = min(num_bytes, file.stat().st_size) // CHUNK_BYTES * CHUNK_BYTES
    start = time.perf_counter()
    for offset in range(0, num_bytes, CHUNK_BYTES):
        reader.read(offset, CHUNK_BYTES, buffer, "the benchmark's piece")
    seconds = time.perf_counter() - start
    reader.close()
    return num_bytes / seconds


def step_seconds(llm: LLM, batch: int, steps: int) -> list[float]:
    """Seconds of single decode steps."""
    prompts = [[3 + i, 5, 7, 11] for i in range(batch)]
    times = []
    stream = [llm.stream(p, SamplingParams(max_tokens=steps + 1, temperature=0, ignore_eos=True)) for p in prompts[:1]]
    if batch > 1:
        start = time.perf_counter()
        llm.generate(prompts, SamplingParams(max_tokens=steps, temperature=0, ignore_eos=True))
        return [(time.perf_counter() - start) / steps] * steps
    last = None
    for _ in stream[0]:
        now = time.perf_counter()
        if last is not None:
            times.append(now - last)
        last = now
    return times


def measure(args: argparse.Namespace) -> dict[str, object]:
    options = {"max_num_batched_tokens": 256, "max_num_seqs": 8, "max_model_len": 512, "structured_output": False}
    rounds = []
    with LLM(args.model, memory=args.memory, weights=args.weights, quantization=args.quantization, **options) as llm:
        built = llm._open()
        plan = built.loaded.stream
        streamed = 0 if plan is None else plan.step_bytes
        file = max(built.loaded.path.glob("*.safetensors"), key=lambda f: f.stat().st_size)
        for _ in range(args.rounds):
            rate = disk_rate(file, args.probe << 20)
            seconds = statistics.median(step_seconds(llm, args.batch, args.steps))
            again = disk_rate(file, args.probe << 20)
            share = streamed / seconds / statistics.mean((rate, again))
            rounds.append({"disk_bytes_per_second": (rate + again) / 2, "step_seconds": seconds, "share": share})
        stats = llm.stats()
    return {
        "weights": stats["model"]["weights"],
        "step_bytes": streamed,
        "tokens_per_second": args.batch / statistics.median(r["step_seconds"] for r in rounds),
        "share": statistics.median(r["share"] for r in rounds),
        "rounds": rounds,
        "leased_bytes": stats["memory"]["leased_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--memory", default="1200MiB")
    parser.add_argument("--weights", default="stream")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probe", type=int, default=256, help="MiB of each measurement of the disk")
    print(json.dumps(measure(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
