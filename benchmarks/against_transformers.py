"""Decode and prefill speed beside transformers' ``generate``: same random weights, same prompts, A B A B in one run.

    python benchmarks/against_transformers.py --batch 1 32 --rounds 3

Makes a random-weight model of Qwen2.5-0.5B's shape (bf16, 1 GB) in ``--models`` once. Each engine runs in a process of
its own that stays loaded and is asked in turn; the figures are medians of tokens per second, their spread
(max - min) / median, and the ratio Pagoda / transformers round by round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PROMPT, NEW = 32, 32
Generate = Callable[[list[list[int]], int], None]

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
    "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu",
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def make_model(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models

    from pagoda.models.model import Model

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.02 + (len(shape) == 1 and "norm" in name)).bfloat16()
        for name, shape in Model.from_config(CONFIG).expected_tensors().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "tokenizer.json"))


def load_pagoda(folder: str, threads: int) -> Generate:
    from pagoda import LLM, SamplingParams

    llm = LLM(folder, enable_prefix_caching=False, num_threads=threads)

    def generate(prompts: list[list[int]], num: int) -> None:
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=num, ignore_eos=True))

    return generate


def load_transformers(folder: str, threads: int) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0

    def generate(prompts: list[list[int]], num: int) -> None:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num)

    return generate


def worker(pipe: Connection, load: Callable[[str, int], Generate], folder: str, threads: int) -> None:
    from pagoda.budget import MachineProbe

    generate = load(folder, threads)
    pipe.send("ready")
    while (job := pipe.recv()) is not None:
        prompts, num = job
        started = time.perf_counter()
        generate(prompts, num)
        pipe.send((time.perf_counter() - started, MachineProbe().peak_rss()))


def ask(pipe: Connection, batch: int, length: int, num: int, seed: int) -> tuple[float, int]:
    import random

    rng = random.Random(seed)
    pipe.send(([[rng.randrange(1, 15000) for _ in range(length)] for _ in range(batch)], num))
    return pipe.recv()


def measure(pipes: dict[str, Connection], batch: int, rounds: int) -> dict[str, Any]:
    """Decode tokens/s: a run of NEW tokens less a run of one, so that the prompt's time drops out."""
    rates: dict[str, list[float]] = {name: [] for name in pipes}
    for pipe in pipes.values():
        ask(pipe, batch, PROMPT, 3, seed=0)
    for seed in range(1, rounds + 1):
        for name, pipe in pipes.items():
            short, _ = ask(pipe, batch, PROMPT, 1, seed)
            whole, _ = ask(pipe, batch, PROMPT, NEW, seed)
            rates[name].append(batch * (NEW - 1) / (whole - short))
    return summary(rates, f"decode b={batch}")


def measure_prefill(pipes: dict[str, Connection], length: int, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in pipes}
    for seed in range(rounds + 1):
        for name, pipe in pipes.items():
            seconds, _ = ask(pipe, 1, length, 1, 1000 + seed)
            if seed:
                rates[name].append(length / seconds)
    return summary(rates, f"prefill {length}")


def summary(rates: dict[str, list[float]], what: str) -> dict[str, Any]:
    ratios = [ours / theirs for ours, theirs in zip(rates["pagoda"], rates["transformers"], strict=True)]
    return {
        "what": what,
        **{f"{name}_tokens_per_s": round(statistics.median(values), 1) for name, values in rates.items()},
        **{f"{name}_spread": round((max(v) - min(v)) / statistics.median(v), 2) for name, v in rates.items()},
        "ratio_median": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("build/models"))
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    folder = args.models / "qwen05b"
    if not (folder / "model.safetensors").exists():
        make_model(folder)
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name, load in (("pagoda", load_pagoda), ("transformers", load_transformers)):
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, load, str(folder), args.threads), daemon=True).start()
        pipes[name] = ours
        print(f"{name}: {ours.recv()}", file=sys.stderr)
    for batch in args.batch:
        print(json.dumps(measure(pipes, batch, args.rounds)), flush=True)
    for length in args.prefill:
        print(json.dumps(measure_prefill(pipes, length, args.rounds)), flush=True)
    peaks = {name: ask(pipe, 1, 8, 1, 0)[1] >> 20 for name, pipe in pipes.items()}
    print(json.dumps({"what": "peak RSS, MiB", **peaks}))
    for pipe in pipes.values():
        pipe.send(None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
