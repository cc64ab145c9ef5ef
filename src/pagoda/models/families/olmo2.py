"""OLMo 2 (https://arxiv.org/abs/2501.00656): norms after attention and feed-forward, and over whole q and k."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config
from .base import Family

NAMES = Names(norm1="post_attention_layernorm", norm2="post_feedforward_layernorm")


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(
        cfg, vocab_size=50304, hidden=4096, inner=11008, layers=32, heads=32, kv_heads=None, max_position=2048
    )
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-5), fp32_weight=True)
    bias = cfg.flag("attention_bias", False)
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        bias=bias,
        out_bias=bias,
        rope=read_rope(cfg, d.head_dim, max_position=d.max_position),
        qk_norm=norm,
        qk_norm_over="all",
    )
    return DecoderSpec(
        family="olmo2",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(BlockSpec(attn, MLPSpec(d.inner, cfg.act("hidden_act", "silu")), norm, "post"),) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        names=NAMES,
    )


def tiny() -> dict[str, Any]:
    return tiny_config("olmo2", rope_theta=5e5)


FAMILY = Family(read, tiny, variants={"biases": {"attention_bias": True}})
