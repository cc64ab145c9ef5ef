"""What windowed layers give back: ``python -m benchmarks.windowed_memory``, on a random model of Gemma 3's pattern.

One request alone, and as many at once as a pool holds, beside an engine whose windowed layers keep everything (the
plain twin). With ``--steps`` also a decode step's processor time, the two engines by turns.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from benchmarks.peers.checkpoints import write_model

HEAD_DIM = 64
SHAPE = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 64,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": HEAD_DIM, "vocab_size": 512,
    "query_pre_attn_scalar": HEAD_DIM, "sliding_window_pattern": 6, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "eos_token_id": 1,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--context", type=int, default=8192, help="tokens of a request, the answer among them")
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--kv", default="exact")
    parser.add_argument("--held", type=int, default=4, help="requests whose whole KV the pool holds")
    parser.add_argument("--steps", type=int, default=0, help="decode steps that are timed, of 1 and 4 sequences")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), SHAPE | {"num_hidden_layers": args.layers, "sliding_window": args.window})
        print("| windowed layers | KV of one request | requests at once | preempted |")
        print("| --- | ---: | ---: | ---: |")
        for name, whole in (("keep all", True), ("give back", False)):
            alone, most, preempted = hold(folder, args, whole=whole)
            print(f"| {name} | {alone / 2**20:.1f} MiB | {most} | {preempted} |", flush=True)
        for batch in (1, 4) if args.steps else ():
            before, after = steps(folder, args, batch)
            print(f"decode step of {batch}: {before * 1e3:.3f} ms of a core keeping all, {after * 1e3:.3f} giving back")


@contextmanager
def opened(folder: str, args: argparse.Namespace, whole: bool, blocks: int, seqs: int) -> Iterator[tuple[Any, Any]]:
    """An engine of a pool of so many blocks (``whole``: as if no layer gave anything back), and its intake."""
    from pagoda.engine.build import build
    from pagoda.engine.config import EngineConfig
    from pagoda.engine.intake import Intake

    kv_memory = blocks * 16 * args.layers * 2 * HEAD_DIM * 4  # so small a model runs in float32
    config = EngineConfig(
        folder, memory="4GiB", kv_memory=kv_memory, max_model_len=args.context, kv=args.kv, max_num_seqs=seqs,
        enable_prefix_caching=True, num_threads=1, structured_output=False,
    )  # fmt: skip
    with ExitStack() as stack:
        for name in ("pagoda.kv.windows.Windows.of", "pagoda.kv.policies._layers.Distances.reach") if whole else ():
            stack.enter_context(patch(name, lambda *_: None))
        built = build(config)
        stack.callback(built.close)
        yield built.engine, Intake(built)


def request(intake: Any, number: int, args: argparse.Namespace, answer: int) -> Any:
    """Random tokens."""
    from pagoda import SamplingParams

    rng = random.Random(number)
    prompt = [rng.randrange(2, 256) for _ in range(args.context - answer)]
    return intake.request(str(number), prompt, SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True))


def hold(folder: str, args: argparse.Namespace, *, whole: bool) -> tuple[int, int, int]:
    """KV bytes of a request at its end, requests at once, and how often one was pushed out."""
    blocks = args.held * -(-args.context // 16) + args.held
    with opened(folder, args, whole, blocks, 64) as (engine, intake):
        alone = most = 0
        engine.add(request(intake, 0, args, args.answer))
        while engine.has_work:
            engine.step()
            alone = next(iter(held(engine)), alone)
        for number in range(1, 6 * args.held):
            engine.add(request(intake, number, args, args.answer))
        still = 0
        while engine.has_work and still < 100:  # steps in which no more of them came in
            engine.step()
            now = sum(one.num_computed >= one.prompt_len for one in engine.scheduler.running.values())
            still = 0 if now > most else still + 1
            most = max(most, now)
        preempted = engine.scheduler.num_preemptions
    return alone, most, preempted


def held(engine: Any) -> list[int]:
    """KV bytes of every sequence whose prompt is there."""
    running = engine.scheduler.running.values()
    return [engine.manager.held_bytes(one.seq_id) for one in running if one.num_computed >= one.prompt_len]


def steps(folder: str, args: argparse.Namespace, batch: int) -> tuple[float, float]:
    """Processor seconds of a decode step: keeping all, giving back."""
    blocks, found = (batch + 1) * -(-args.context // 16), (list[float](), list[float]())
    with opened(folder, args, False, blocks, batch) as second, opened(folder, args, True, blocks, batch) as first:
        for engine, intake in (first, second):
            for number in range(batch):
                engine.add(request(intake, number, args, args.steps + 40))
            while len(held(engine)) < batch:
                engine.step()
        for _ in range(args.steps):
            for (engine, _), seconds in zip((first, second), found, strict=True):
                started = time.process_time()
                engine.step()
                seconds.append(time.process_time() - started)
    return median(found[0]), median(found[1])


if __name__ == "__main__":
    main()
