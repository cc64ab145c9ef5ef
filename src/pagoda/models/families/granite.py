"""Granite 3 (https://github.com/ibm-granite/granite-3.0-language-models): Llama with four multipliers."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config
from .base import Family


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
        scale=cfg.number("attention_multiplier", 1.0),
        bias=bias,
        out_bias=bias,
        rope=read_rope(cfg, d.head_dim, max_position=d.max_position),
    )
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "silu"), bias=cfg.flag("mlp_bias", False))
    block = BlockSpec(attn, mlp, norm, residual_scale=cfg.number("residual_multiplier", 1.0))
    return DecoderSpec(
        family="granite",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(block,) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        embed_scale=cfg.number("embedding_multiplier", 1.0),
        logit_scale=1.0 / cfg.number("logits_scaling", 1.0),
    )


def tiny() -> dict[str, Any]:
    return tiny_config(
        "granite",
        embedding_multiplier=12.0,
        attention_multiplier=0.17,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    )


FAMILY = Family(read, tiny, variants={"biases": {"attention_bias": True, "mlp_bias": True}})
