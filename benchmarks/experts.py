"""A mixture of experts four times its cache, under a skewed router: `python -m benchmarks.experts`.

Random weights, 64 experts a layer, routers whose rows differ in length so that few experts get most of the tokens. Each
policy of the cache answers the same prompts, in rounds beside one another and beside the model that is all in memory.
Hit rates and speed are what is measured; random weights say nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pagoda.budget.ledger import Ledger
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.models.load import Loaded, load_model
from pagoda.models.model import Model
from pagoda.models.placement import Room
from pagoda.weights.expert_cache import POLICIES

CONFIG = {
    "model_type": "qwen3_moe", "num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 384,
    "intermediate_size": 384, "num_hidden_layers": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "hidden_size": 512, "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
    "vocab_size": 2048, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "eos_token_id": 0,
}  # fmt: skip


def write(folder: Path, skew: float) -> None:
    """The model, with a tokenizer of bytes; expert e's row of every router is ``1 + skew / rank`` times as long."""
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    Tokenizer(models.BPE({f"t{i}": i for i in range(2048)}, [])).save(str(folder / "tokenizer.json"))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in Model.from_config(CONFIG).expected_tensors().items():
        tensor = torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 0.05
        if name.endswith("mlp.gate.weight"):
            ranks = torch.randperm(shape[0], generator=generator) + 1
            tensor *= 1 + skew / ranks[:, None]
        tensors[name] = tensor.bfloat16()
    save_file(tensors, folder / "model.safetensors")


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
def decode(loaded: Loaded, prompt: int, steps: int) -> float:
    """Seconds of so many greedy steps after one prompt token."""
    cache, token = DenseCache(), torch.tensor([prompt])
    start = time.perf_counter()
    for position in range(steps):
        view = DenseView(cache, [0], [1])
        hidden = loaded.model.forward(token, torch.tensor([position]), view)
        token = loaded.model.logits(hidden).argmax(-1)
        token = (token + position * 7 + prompt) % 2048  # random weights would repeat one token for ever
    return time.perf_counter() - start


def measure(folder: Path, share: float, rounds: int, steps: int) -> dict[str, Any]:
    whole = 3 * 384 * 512 * 2 * 64 * 8
    found = {"all in memory": open_model(folder, None, "lru")}
    found |= {policy: open_model(folder, int(whole * share), policy) for policy in POLICIES}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        for name, loaded in found.items():
            seconds[name].append(decode(loaded, 11 + number, steps))
    report = {}
    for name, loaded in found.items():
        times = seconds[name][1:] or seconds[name]
        row: dict[str, Any] = {"tokens_per_second": steps / statistics.median(times), "runs": len(times)}
        if loaded.experts is not None:
            c = loaded.experts.counters
            row |= {"hit_rate": c.hits / (c.hits + c.misses), "guesses": c.prefetched, "used": c.prefetched_used}
            row |= {"cache_bytes": loaded.experts.num_bytes, "bytes_read": c.bytes_read}
        report[name] = row
        loaded.close()
    return {"expert_bytes": whole, "share": share, "policies": report}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.25, help="of all experts' bytes, for the cache")
    parser.add_argument("--skew", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "moe", args.skew)
        print(json.dumps(measure(Path(folder) / "moe", args.share, args.rounds, args.steps), indent=1))


if __name__ == "__main__":
    main()
