"""Llama 1, 2, 3.x (https://arxiv.org/abs/2407.21783) and the many checkpoints that share its architecture."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from .base import REMOVED, Family


def read(cfg: ConfigReader) -> DecoderSpec:
    hidden, heads = cfg.integer("hidden_size", 4096), cfg.integer("num_attention_heads", 32)
    head_dim = cfg.integer("head_dim", hidden // heads)
    max_position = cfg.integer("max_position_embeddings", 2048)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    bias = cfg.flag("attention_bias", False)
    attn = AttentionSpec(
        num_heads=heads,
        num_kv_heads=cfg.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        bias=bias,
        out_bias=bias,
        rope=read_rope(cfg, head_dim, max_position=max_position),
    )
    mlp = MLPSpec(
        cfg.integer("intermediate_size", 11008), cfg.act("hidden_act", "silu"), bias=cfg.flag("mlp_bias", False)
    )
    return DecoderSpec(
        family="llama",
        vocab_size=cfg.integer("vocab_size", 32000),
        hidden_size=hidden,
        blocks=(BlockSpec(attn, mlp, norm),) * cfg.integer("num_hidden_layers", 32),
        final_norm=norm,
        max_position=max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


FAMILY = Family(
    read,
    tiny,
    variants={
        "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True},
        "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "llama3": {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        "yarn": {
            "rope_theta": REMOVED,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    },
)
