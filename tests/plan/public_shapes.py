"""Thirty published shapes, 0.07B to 671B, dense and mixtures: what their config.json says beyond the class defaults.

Written from the models' public configs; parameter counts are those of the published checkpoints where they are known
(``tests/models/test_shape.py`` holds more of them). None is downloaded.
"""

from __future__ import annotations

from typing import Any

LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def dims(hidden: int, inner: int, layers: int, heads: int, kv_heads: int | None = None, **more: Any) -> dict[str, Any]:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {**dict(zip(keys, (hidden, inner, layers, heads, kv_heads or heads), strict=True)), **more}


TIED = {"tie_word_embeddings": True}
LLAMA3 = {"vocab_size": 128256, "max_position_embeddings": 131072}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "pythia-70m": ("gpt_neox", dims(512, 2048, 6, 8, vocab_size=50304)),
    "gpt2": ("gpt2", {}),
    "SmolLM2-135M": ("llama", dims(576, 1536, 30, 9, 3, vocab_size=49152, max_position_embeddings=8192, **TIED)),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "Qwen2.5-0.5B": ("qwen2", dims(896, 4864, 24, 14, 2, vocab_size=151936, **TIED)),
    "Qwen3-0.6B": ("qwen3", dims(1024, 3072, 28, 16, 8, head_dim=128, vocab_size=151936, **TIED)),
    "gemma-3-1b": ("gemma3_text", dims(1152, 6912, 26, 4, 1, vocab_size=262144)),
    "TinyLlama-1.1B": ("llama", dims(2048, 5632, 22, 32, 4, vocab_size=32000)),
    "Llama-3.2-1B": (
        "llama",
        dims(2048, 8192, 16, 32, 8, rope_scaling={**LLAMA3_ROPE, "factor": 32.0}, **LLAMA3, **TIED),
    ),
    "OLMoE-1B-7B": ("olmoe", {"intermediate_size": 1024}),
    "Qwen2.5-1.5B": ("qwen2", dims(1536, 8960, 28, 12, 2, vocab_size=151936, **TIED)),
    "stablelm-2-1.6b": ("stablelm", dims(2048, 5632, 24, 32, 32, vocab_size=100352, use_qkv_bias=True)),
    "granite-3.1-2b": ("granite", dims(2048, 8192, 40, 32, 8, vocab_size=49155, **TIED)),
    "gemma-2-2b": ("gemma2", {}),
    "SmolLM3-3B": ("smollm3", {}),
    "Llama-3.2-3B": ("llama", dims(3072, 8192, 28, 24, 8, head_dim=128, **LLAMA3, **TIED)),
    "Phi-3-mini": ("phi3", {}),
    "falcon-7b": ("falcon", {}),
    "Mistral-7B": ("mistral", {}),
    "OLMo-2-7B": ("olmo2", {"vocab_size": 100352}),
    "Qwen2.5-7B": ("qwen2", dims(3584, 18944, 28, 28, 4, vocab_size=152064)),
    "Llama-3.1-8B": ("llama", dims(4096, 14336, 32, 32, 8, rope_scaling=LLAMA3_ROPE, **LLAMA3)),
    "Qwen1.5-MoE-A2.7B": ("qwen2_moe", {}),
    "gpt-oss-20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}),
    "Qwen3-30B-A3B": ("qwen3_moe", {"head_dim": 128, "num_hidden_layers": 48}),
    "Qwen2.5-32B": ("qwen2", dims(5120, 27648, 64, 40, 8, vocab_size=152064)),
    "Mixtral-8x7B": ("mixtral", {}),
    "Llama-3.1-70B": ("llama", dims(8192, 28672, 80, 64, 8, rope_scaling=LLAMA3_ROPE, **LLAMA3)),
    "gpt-oss-120b": ("gpt_oss", {}),
    "Llama-3.1-405B": ("llama", dims(16384, 53248, 126, 128, 8, rope_scaling=LLAMA3_ROPE, **LLAMA3)),
    "DeepSeek-V3": ("deepseek_v3", {}),
}


def config_of(name: str) -> dict[str, Any]:
    """``config.json`` of one of them."""
    family, changes = SHAPES[name]
    return {"model_type": family, "torch_dtype": "bfloat16", **changes}
