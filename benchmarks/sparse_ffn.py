"""A ReLU model larger than its budget, neurons on demand beside whole matrices: `python -m benchmarks.sparse_ffn`.

Random weights of a 1B shape (OPT's, or a Llama's with `hidden_act: relu`) whose feed-forward biases are lowered until a
stated share of neurons is active: the sparsity is made, not learned. What a trained model has: 3 % active in OPT-6.7B
(LLM in a flash, 2.2), and tokens next to one another share many of theirs; here a share ``--common`` of the active ones
is active for nearly every token, by a bias of its own. Both ways of loading run inside one budget, in rounds beside one
another, from disk past the page cache. Random weights say nothing about quality.
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

from pagoda.budget.ledger import Ledger
from pagoda.core.units import format_bytes, parse_bytes
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.models.config_json import read_config
from pagoda.models.load import Loaded, load_model
from pagoda.models.model import Model
from pagoda.models.neuron_file import bundle
from pagoda.models.placement import Room
from pagoda.weights.reader import Checkpoint
from pagoda.weights.source import open_source
from pagoda.weights.writer import write_stream

VOCAB = 8192
STEPS = {"stream": 2, "sparse-ffn": 0}  # tokens of a round, 0: as asked for; streaming takes the same time for any
SHAPES: dict[str, dict[str, Any]] = {
    "opt": {
        "model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
        "activation_function": "relu", "word_embed_proj_dim": 2048, "max_position_embeddings": 512,
    },
    "llama": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "relu", "mlp_bias": True,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
    },
}  # fmt: skip


def write(folder: Path, shape: str, active: float, common: float) -> None:
    """Pre-activations are near normal: a bias at their quantile leaves ``active`` of the neurons above zero."""
    from tokenizers import Tokenizer, models

    config = SHAPES[shape] | {"vocab_size": VOCAB, "torch_dtype": "bfloat16", "eos_token_id": 0}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    Tokenizer(models.BPE({f"t{i}": i for i in range(VOCAB)}, [])).save(str(folder / "tokenizer.json"))
    expected = Model.from_config(config | {"tie_word_embeddings": True}).expected_tensors()
    entries = [(name, "BF16", size) for name, size in expected.items()]
    generator = torch.Generator().manual_seed(0)
    width = SHAPES[shape]["hidden_size"] ** 0.5 * 0.02
    rare = torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - active * (1 - common))).item() * width

    def tensors() -> Any:
        for name, size in expected.items():
            if name.endswith(("fc1.bias", "gate_proj.bias")):
                often = torch.rand(size, generator=generator) < active * common
                yield torch.where(often, 2.0 * width, -rare).bfloat16()
            elif "norm" in name:
                yield torch.full(size, 0.0 if name.endswith("bias") else 1.0).bfloat16()
            else:
                yield (torch.randn(size, generator=generator) * 0.02).bfloat16()

    write_stream(folder / "model.safetensors", entries, tensors())


@torch.inference_mode()
def read_tokens(loaded: Loaded, count: int, seed: int) -> float:
    """Seconds of so many tokens, one by one."""
    tokens = torch.randint(VOCAB, (count, 1), generator=torch.Generator().manual_seed(seed))
    cache, start = DenseCache(), time.perf_counter()
    for position, token in enumerate(tokens):
        hidden = loaded.model.forward(token, torch.tensor([position]), DenseView(cache, [0], [1]))
        loaded.model.logits(hidden)
    return time.perf_counter() - start


def measure(folder: Path, budget: int, rounds: int, count: int) -> dict[str, Any]:
    options: dict[str, Any] = {"dtype": "bfloat16", "room": lambda *_: Room(budget, budget)}
    found = {
        name: load_model(folder, weights=name, ledger=Ledger(4 * budget), **options)
        for name in ("stream", "sparse-ffn")
    }
    sparse = found["sparse-ffn"]
    assert sparse.neurons is not None
    read_tokens(sparse, count, 99)  # the window is filled
    before = vars_of(sparse)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds):
        for name, loaded in found.items():
            steps = STEPS[name] or count
            seconds[name].append(read_tokens(loaded, steps, number) / steps)
    now = {key: value - before[key] for key, value in vars_of(sparse).items()}
    tokens = rounds * count
    assert found["stream"].stream is not None
    assert sparse.stream is not None
    neurons = sparse.stream.num_neurons * sparse.shape.num_layers
    report = {
        "budget": format_bytes(budget), "weights": format_bytes(sparse.shape.weight_bytes("bfloat16")),
        "seconds_per_token": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "times_faster": [round(a / b, 2) for a, b in zip(seconds["stream"], seconds["sparse-ffn"], strict=True)],
        "bytes_per_token": {"stream": found["stream"].stream.step_bytes, "sparse-ffn": now["bytes_read"] // tokens},
        "in_memory": {n: found[n].placement for n in found},
        "hit_rate": round(now["hits"] / (now["hits"] + now["misses"]), 3),
        "active": round((now["hits"] + now["misses"]) / tokens / neurons, 4),
        "bytes_per_read": now["bytes_read"] // max(1, now["num_reads"]),
    }  # fmt: skip
    for loaded in found.values():
        loaded.close()
    return report


def vars_of(loaded: Loaded) -> dict[str, int]:
    from dataclasses import asdict

    assert loaded.neurons is not None
    return asdict(loaded.neurons.counters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama")
    parser.add_argument("--budget", default="1229MiB")
    parser.add_argument("--active", type=float, default=0.05, help="share of neurons above zero")
    parser.add_argument("--common", type=float, default=0.5, help="of those, active for nearly every token")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where the model is kept from run to run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (args.folder or Path(scratch)) / f"{args.shape}-{args.active}-{args.common}"
        if not folder.exists():
            write(folder, args.shape, args.active, args.common)
            bundle(folder, read_config(folder), open_source(Checkpoint.open(folder), None), dtype="bfloat16")
        budget = parse_bytes(args.budget, what="--budget")
        print(json.dumps({"shape": args.shape} | measure(folder, budget, args.rounds, args.tokens), indent=1))


if __name__ == "__main__":
    main()
