"""BitNet b1.58 (https://arxiv.org/abs/2504.12285) with unpacked weights: norms before both output projections."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=128256, hidden=2560, inner=6912, layers=30, heads=20, kv_heads=5, max_position=2048)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-5))
    bias = cfg.flag("attention_bias", False)
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        bias=bias,
        out_bias=bias,
        rope=read_rope(cfg, d.head_dim, default_theta=500000.0, max_position=d.max_position),
        out_norm=norm,
    )
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "relu2"), inner_norm=norm)
    return DecoderSpec(
        family="bitnet",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(BlockSpec(attn, mlp, norm),) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return tiny_config("bitnet")


FAMILY = Family(
    read, tiny, variants={"silu": {"hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": True}}
)
