"""A mixture of experts four times its cache, under a skewed router: `python -m benchmarks.experts`.

Random weights, 64 experts a layer, routers whose rows differ in length so that few experts get most of the tokens.
Requests are of two kinds: tokens drawn by chance, and tokens of one of 16 topics, whose embeddings have a part in
common, so that a request stays with its experts (--topics 1 and 16). Attention's answer counts 0.3: with random weights
it is an average of the context, which would make every token's routing that of the token before. Each policy of the
cache reads the same requests, in rounds beside one another, beside the model that is all in memory, and beside reading
every expert of every layer for every token. Hit rates and speed are what is measured; random weights say nothing about
quality.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pagoda.budget.ledger import Ledger
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.models.load import Loaded, load_model
from pagoda.models.model import Model
from pagoda.models.placement import Room
from pagoda.weights.expert_policies import POLICIES

WARM = 4  # requests before those that are measured
VOCAB, ATTENTION, IN_COMMON = 2048, 0.3, 0.3  # of o_proj; of an embedding, what all tokens of a topic share
CONFIG = {
    "model_type": "qwen3_moe", "num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 384,
    "intermediate_size": 384, "num_hidden_layers": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "hidden_size": 512, "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "eos_token_id": 0,
}  # fmt: skip
EXPERT_BYTES = 3 * 384 * 512 * 2


def write(folder: Path, skew: float, topics: int, layers: int = 8) -> None:
    """The model, with a tokenizer of bytes; expert e's row of every router is ``1 + skew / rank`` times as long."""
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(models.BPE({f"t{i}": i for i in range(VOCAB)}, [])).save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in Model.from_config(config).expected_tensors().items():
        tensor = torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 0.05
        if name.endswith("mlp.gate.weight"):
            ranks = torch.randperm(shape[0], generator=generator) + 1
            tensor *= 1 + skew / ranks[:, None]
        if name.endswith("o_proj.weight"):
            tensor *= ATTENTION
        if "embed_tokens" in name and topics > 1:
            common = torch.randn(topics, shape[1], generator=generator)[torch.arange(VOCAB) % topics] * 0.05
            tensor = IN_COMMON**0.5 * common + (1 - IN_COMMON) ** 0.5 * tensor
        tensors[name] = tensor.bfloat16()
    save_file(tensors, folder / "model.safetensors")


def requests(count: int, steps: int, topics: int) -> list[list[int]]:
    """Tokens of every request, all of one topic."""
    rng = random.Random(1)
    found = []
    for _ in range(count):
        topic = rng.randrange(topics)
        found.append([rng.randrange(VOCAB // topics) * topics + topic for _ in range(steps)])
    return found


def open_model(folder: Path, cache_bytes: int | None, policy: str) -> Loaded:
    if cache_bytes is None:
        return load_model(folder, dtype="bfloat16", quantization="bf16")
    probe = load_model(folder, dtype="bfloat16", quantization="bf16", weights="stream", room=lambda *_: Room(0, 0))
    resident = probe.stream.resident_bytes if probe.stream else 0
    probe.close()
    room = resident + cache_bytes
    options: dict[str, Any] = {"weights": "stream", "room": lambda *_: Room(room, room), "expert_cache": policy}
    return load_model(folder, dtype="bfloat16", quantization="bf16", ledger=Ledger(4 << 30), **options)


@torch.inference_mode()
def read_request(loaded: Loaded, tokens: list[int]) -> float:
    """Seconds of one request, token by token."""
    cache = DenseCache()
    start = time.perf_counter()
    for position, token in enumerate(tokens):
        view = DenseView(cache, [0], [1])
        loaded.model.logits(loaded.model.forward(torch.tensor([token]), torch.tensor([position]), view))
    return time.perf_counter() - start


def read_everything(loaded: Loaded) -> float:
    """Seconds to read all experts of all layers once, as a token would without a cache and without a router's word."""
    assert loaded.experts is not None
    start = time.perf_counter()
    for layer in range(loaded.shape.num_layers):
        for _ in loaded.experts.use(layer, range(64)):
            pass
    return time.perf_counter() - start


def measure(folder: Path, share: float, texts: list[list[int]]) -> dict[str, Any]:
    whole = EXPERT_BYTES * 64 * 8
    found = {"all in memory": open_model(folder, None, "lru")}
    found |= {policy: open_model(folder, int(whole * share), policy) for policy in POLICIES}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    before: dict[str, Any] = {}
    for number, tokens in enumerate(texts):
        for name, loaded in found.items():
            taken = read_request(loaded, tokens)
            if number >= WARM:
                seconds[name].append(taken)
            elif loaded.experts is not None:
                before[name] = replace(loaded.experts.counters)
    report = {}
    for name, loaded in found.items():
        times, plain = seconds[name], seconds["lru"]
        row: dict[str, Any] = {"tokens_per_second": round(len(texts[0]) / statistics.median(times), 1)}
        ratios = sorted(lru / ours for lru, ours in zip(plain, times, strict=True))
        row |= {"beside_lru": round(statistics.median(ratios), 3), "spread": [round(r, 2) for r in ratios]}
        if loaded.experts is not None:
            c, b = loaded.experts.counters, before[name]
            hits, misses = c.hits - b.hits, c.misses - b.misses
            row |= {"hit_rate": round(hits / (hits + misses), 4), "guesses": c.prefetched - b.prefetched}
            row |= {"used": c.prefetched_used - b.prefetched_used, "cache_bytes": loaded.experts.num_bytes}
            row |= {"bytes_per_token": (c.bytes_read - b.bytes_read) // (len(times) * len(texts[0]))}
            if c.foreseen:
                row["foreseen_right"] = round(c.foreseen_right / c.foreseen, 3)
        report[name] = row
    report["every expert read"] = {"tokens_per_second": round(1 / read_everything(found["lru"]), 2)}
    for loaded in found.values():
        loaded.close()
    return {"expert_bytes": whole, "share": share, "requests": len(texts) - WARM, "policies": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.25, help="of all experts' bytes, for the cache")
    parser.add_argument("--skew", type=float, default=12.0)
    parser.add_argument("--topics", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--requests", type=int, default=8, help="that are measured")
    parser.add_argument("--steps", type=int, default=64, help="tokens of a request")
    args = parser.parse_args()
    for topics in args.topics:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "moe", args.skew, topics)
            texts = requests(WARM + args.requests, args.steps, topics)
            print(json.dumps({"topics": topics} | measure(Path(folder) / "moe", args.share, texts)), flush=True)


if __name__ == "__main__":
    main()
