"""OLMoE (https://arxiv.org/abs/2409.02060): many small experts, norms over whole q and k, optional clipping."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MoESpec, NormSpec, RouterSpec
from ._read import read_dims, tiny_config
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=50304, hidden=2048, inner=2048, layers=16, heads=16, kv_heads=None, max_position=4096)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-5))
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
        clip=cfg.opt_number("clip_qkv") or 0.0,
    )
    router = RouterSpec("softmax", cfg.integer("num_experts_per_tok", 8), cfg.flag("norm_topk_prob", False))
    mlp = MoESpec(cfg.integer("num_experts", 64), d.inner, cfg.act("hidden_act", "silu"), router)
    return DecoderSpec(
        family="olmoe",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(BlockSpec(attn, mlp, norm),) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return tiny_config("olmoe", intermediate_size=12, num_experts=8, num_experts_per_tok=3, clip_qkv=0.8)


FAMILY = Family(read, tiny, variants={"normalized": {"clip_qkv": None, "norm_topk_prob": True}})
