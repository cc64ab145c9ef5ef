"""Llama 1, 2, 3.x (https://arxiv.org/abs/2407.21783) and the many checkpoints that share its architecture."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config
from .base import REMOVED, Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(
        cfg, vocab_size=32000, hidden=4096, inner=11008, layers=32, heads=32, kv_heads=None, max_position=2048
    )
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    bias = cfg.flag("attention_bias", False)
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        bias=bias,
        out_bias=bias,
        rope=read_rope(cfg, d.head_dim, max_position=d.max_position),
    )
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "silu"), bias=cfg.flag("mlp_bias", False))
    return DecoderSpec(
        family="llama",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(BlockSpec(attn, mlp, norm),) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return tiny_config("llama", rope_theta=10000.0)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}

FAMILY = Family(
    read,
    tiny,
    variants={
        "biases": {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "tie_word_embeddings": True},
        "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "llama3": {"rope_scaling": LLAMA3},
        "yarn": {"rope_theta": REMOVED, "rope_parameters": YARN},
    },
)
