"""StableLM 3B, Zephyr, StableLM 2 (https://arxiv.org/abs/2402.17834): LayerNorm, partial rotary, gated feed-forward."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config
from .base import Family

NAMES = Names(q_norm="self_attn.q_layernorm.norms.{h}", k_norm="self_attn.k_layernorm.norms.{h}")


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=50304, hidden=2560, inner=6912, layers=32, heads=32, kv_heads=32, max_position=4096)
    eps = cfg.number("layer_norm_eps", 1e-5)
    norm = NormSpec("layer", eps, bias=True)
    rope = read_rope(
        cfg,
        d.head_dim,
        partial_key="partial_rotary_factor",
        default_partial=0.25,
        max_position=d.max_position,
    )
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        bias=cfg.flag("use_qkv_bias", False),
        rope=rope,
        qk_norm=NormSpec("layer", eps) if cfg.flag("qk_layernorm", False) else None,
        qk_norm_over="each",
    )
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "silu"))
    block = BlockSpec(attn, mlp, norm, "parallel" if cfg.flag("use_parallel_residual", False) else "pre")
    return DecoderSpec(
        family="stablelm",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(block,) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        names=NAMES,
    )


def tiny() -> dict[str, Any]:
    return tiny_config("stablelm", partial_rotary_factor=0.5, use_qkv_bias=True)


FAMILY = Family(read, tiny, variants={"parallel": {"use_parallel_residual": True, "qk_layernorm": True}})
