"""Small model folders for tests: a config, random weights, a byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pagoda.models.model import Model

from .tokenizer_samples import byte_level

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "eos_token_id": 7,
    "torch_dtype": "float32",
}


def weights(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    expected = Model.from_config(config).expected_tensors()
    return {n: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for n, shape in expected.items()}


def write(folder: Path, *, num_shards: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A loadable folder; ``changes`` override keys of the config."""
    config = CONFIG | changes
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    byte_level().save(str(folder / "tokenizer.json"))
    save(folder, weights(config, dtype), num_shards)
    return folder


def save(folder: Path, tensors: dict[str, torch.Tensor], num_shards: int = 1) -> None:
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {name: f"model-{i % num_shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
