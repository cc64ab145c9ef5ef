"""Small random checkpoints of architectures that have no native family file, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 384,
    "num_hidden_layers": 3, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NO_LAYERS = {"num_hidden_layers": None, "num_key_value_heads": None}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

# model_type: what differs from SIZES (None: the key is left out)
FAMILIES: dict[str, dict[str, Any]] = {
    "starcoder2": {"sliding_window": 8},
    "glm": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "glm4": {"head_dim": 16},
    "nemotron": {"partial_rotary_factor": 0.5, "head_dim": 16},
    "phi": {"partial_rotary_factor": 0.5},
    "olmo": {"clip_qkv": 0.5},
    "olmo3": {"sliding_window": 8, "num_hidden_layers": 5},
    "helium": {"head_dim": 16},
    "ernie4_5": {"head_dim": 16},
    "seed_oss": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "arcee": {},
    "exaone4": {"sliding_window": 8, "sliding_window_pattern": 2, "num_hidden_layers": 4},
    "apertus": {},
    "gemma": {"head_dim": 16},
    "persimmon": {"num_key_value_heads": None},
    "gpt_bigcode": {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 256, "multi_query": True},
    "biogpt": {"num_key_value_heads": None},
    "gptj": {"n_inner": 96, "rotary_dim": 8, "num_key_value_heads": None},
    "codegen": {"n_inner": 96, "rotary_dim": 8, "num_key_value_heads": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 8} | NO_LAYERS,
    "bloom": {"n_head": 4, "n_layer": 3} | NO_LAYERS,
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 256} | NO_LAYERS,
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1},
    "glm4_moe": MOE
    | {"head_dim": 16, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "minicpm3": {
        "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "num_key_value_heads": 4,
    },
}  # fmt: skip


def config(model_type: str, **changes: Any) -> Any:
    """transformers' config object of the small member."""
    import transformers

    values = {k: v for k, v in (SIZES | FAMILIES.get(model_type, {}) | changes).items() if v is not None}
    return transformers.AutoConfig.for_model(model_type, **values)


def reference(model_type: str, **changes: Any) -> Any:
    """transformers' model with weights large enough for greedy tokens to differ from step to step."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config(model_type, **changes), attn_implementation="eager")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    from .tokenizer_samples import byte_level

    model.save_pretrained(folder, max_shard_size="200KB")
    byte_level().save(str(folder / "tokenizer.json"))
    return folder
