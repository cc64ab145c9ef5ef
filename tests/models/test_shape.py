"""Shape arithmetic: known sizes of public models, KV formats, and no torch on the way."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pagoda.core.errors import ConfigError, ModelError
from pagoda.core.types import KVFormat
from pagoda.models.shape import ModelShape

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def dims(hidden: int, inner: int, layers: int, heads: int, kv_heads: int | None = None, **more: Any) -> dict[str, Any]:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {**dict(zip(keys, (hidden, inner, layers, heads, kv_heads), strict=True)), **more}


# Published parameter counts of the checkpoints, and what their config.json says beyond the class defaults.
PUBLISHED = {
    "Llama-3.1-8B": ("llama", dims(4096, 14336, 32, 32, 8, vocab_size=128256, rope_scaling=LLAMA3_ROPE), 8030261248),
    "Mistral-7B": ("mistral", {}, 7241732096),
    "Mixtral-8x7B": ("mixtral", {}, 46702792704),
    "Qwen2.5-0.5B": ("qwen2", dims(896, 4864, 24, 14, 2, tie_word_embeddings=True), 494032768),
    "Qwen1.5-MoE-A2.7B": ("qwen2_moe", {}, 14315784192),
    "Qwen3-0.6B": ("qwen3", dims(1024, 3072, 28, 16, 8, tie_word_embeddings=True), 596049920),
    "Qwen3-30B-A3B": ("qwen3_moe", {"head_dim": 128, "num_hidden_layers": 48}, 30532122624),
    "gemma-2-2b": ("gemma2", {}, 2614341888),
    "gemma-3-1b": ("gemma3_text", dims(1152, 6912, 26, 4, 1, vocab_size=262144), 999885952),
    "Phi-3-mini": ("phi3", {}, 3821079552),
    "OLMo-2-7B": ("olmo2", {"vocab_size": 100352}, 7298617344),
    "OLMoE-1B-7B": ("olmoe", {"intermediate_size": 1024}, 6919161856),
    "SmolLM3-3B": ("smollm3", {}, 3075098624),
    "granite-3.1-2b": ("granite", dims(2048, 8192, 40, 32, 8, vocab_size=49155, tie_word_embeddings=True), 2533531648),
    "pythia-70m": ("gpt_neox", dims(512, 2048, 6, 8, vocab_size=50304), 70426624),
    "gpt2": ("gpt2", {}, 124439808),
    "opt-350m": (
        "opt",
        dims(1024, 1, 24, 16, ffn_dim=4096, do_layer_norm_before=False, word_embed_proj_dim=512),
        331196416,
    ),
    "falcon-7b": ("falcon", {}, 6921720704),
    "falcon-rw-1b": (
        "falcon",
        dims(2048, 1, 24, 32, vocab_size=50304, alibi=True, bias=True, multi_query=False, parallel_attn=False),
        1311625216,
    ),
    "stablelm-2-1.6b": ("stablelm", dims(2048, 5632, 24, 32, 32, vocab_size=100352, use_qkv_bias=True), 1644515328),
    "gpt-oss-20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}, 20914757184),
    "gpt-oss-120b": ("gpt_oss", {}, 116829156672),
    "DeepSeek-V3": ("deepseek_v3", {}, 671026419200),
    "BitNet-b1.58-2B": ("bitnet", {"tie_word_embeddings": True}, 2412820480),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    family, changes, count = PUBLISHED[name]
    shape = ModelShape.from_config({"model_type": family, **changes})
    assert shape.num_params == count
    if shape.num_float32_params == 0:
        assert shape.weight_bytes("bfloat16") == 2 * count
        assert shape.weight_bytes("float32") == 4 * count


def test_kv_format_of_grouped_heads() -> None:
    family, changes, _ = PUBLISHED["Llama-3.1-8B"]
    shape = ModelShape.from_config({"model_type": family, **changes})
    assert shape.kv_format(16, "bfloat16") == KVFormat(32, 8, 128, 128, 16, "bfloat16")
    assert not shape.is_latent
    assert shape.windows == (0,) * 32


def test_kv_format_of_latent_pages() -> None:
    shape = ModelShape.from_config({"model_type": "deepseek_v3"})
    fmt = shape.kv_format(16, "bfloat16")
    assert (fmt.num_kv_heads, fmt.k_dim, fmt.v_dim) == (1, 576, 0)
    assert shape.is_latent
    assert fmt.bytes_per_token == 61 * 576 * 2
    assert shape.weight_bytes("bfloat16") == 2 * shape.num_params + 2 * 58 * 256  # the routers' biases stay float32


def test_windows_by_layer() -> None:
    assert ModelShape.from_config({"model_type": "gemma2", "num_hidden_layers": 3}).windows == (4096, 0, 4096)
    assert ModelShape.from_config({"model_type": "mistral", "sliding_window": None}).windows == (0,) * 32


def test_transformers_5_has_another_name_for_how_many_experts() -> None:
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 1}
    ours, theirs = (ModelShape.from_config({**config, key: 6}) for key in ("num_experts", "num_local_experts"))
    assert ours == theirs
    assert ours.matrices[3].count == 6


def test_yarn_reaches_further_than_the_config_says() -> None:
    rope = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert ModelShape.from_config({"model_type": "qwen2", "rope_scaling": rope}).max_position == 131072
    assert ModelShape.from_config({"model_type": "qwen2"}).max_position == 32768
    assert ModelShape.from_config({"model_type": "gpt_oss"}).max_position == 131072


def test_bytes_of_tables_and_steps() -> None:
    shape = ModelShape.from_config({"model_type": "llama"})
    assert shape.table_bytes(2048, "float32") == 2048 * 128 * 4
    assert ModelShape.from_config({"model_type": "gpt2"}).table_bytes(1024, "float32") == 0
    few, many = (shape.activation_bytes(n, 8, "bfloat16", max_kv_len=2048) for n in (8, 512))
    assert few < many
    assert shape.activation_bytes(8, 512, "bfloat16") > shape.activation_bytes(8, 8, "bfloat16")
    watched = shape.activation_bytes(512, 8, "bfloat16", max_kv_len=2048, collects_probs=True)
    assert watched > many


def test_refusals() -> None:
    with pytest.raises(ModelError, match="hidden_size"):
        ModelShape.from_config({"model_type": "llama", "hidden_size": -1})
    shape = ModelShape.from_config({"model_type": "llama"})
    with pytest.raises(ConfigError, match=r"unknown dtype 'fp61'; accepted: bfloat16, float16, float32"):
        shape.weight_bytes("fp61")
    with pytest.raises(ConfigError, match="int8"):
        shape.kv_format(16, "int8")


def test_shapes_need_no_torch() -> None:
    """The planner reads the shape of every family without loading torch."""
    code = (
        "import sys; from pagoda.models.shape import ModelShape; from pagoda.models import families;"
        "[ModelShape.from_config(c) for n in families.names() for c in families.family(n).members().values()];"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
