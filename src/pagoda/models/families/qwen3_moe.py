"""Qwen3-MoE (https://arxiv.org/abs/2505.09388): Qwen3's attention, experts without a shared one."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, MoESpec, NormSpec, RouterSpec
from ._read import read_dims, sparse_layers, tiny_config
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=151936, hidden=2048, inner=6144, layers=24, heads=32, kv_heads=4, max_position=32768)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    bias, act = cfg.flag("attention_bias", False), cfg.act("hidden_act", "silu")
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        bias=bias,
        out_bias=bias,
        window=(cfg.opt_integer("sliding_window", 4096) or 0) if cfg.flag("use_sliding_window", False) else 0,
        rope=read_rope(cfg, d.head_dim, max_position=d.max_position),
        qk_norm=norm,
    )
    experts = MoESpec(
        num_experts=cfg.integer("num_experts", cfg.integer("num_local_experts", 128)),  # as transformers 5 writes it
        inner=cfg.integer("moe_intermediate_size", 768),
        act=act,
        router=RouterSpec("softmax", cfg.integer("num_experts_per_tok", 8), cfg.flag("norm_topk_prob", False)),
    )
    dense = MLPSpec(d.inner, act)
    return DecoderSpec(
        family="qwen3_moe",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(BlockSpec(attn, experts if s else dense, norm) for s in sparse_layers(cfg, d.layers)),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return tiny_config(
        "qwen3_moe",
        head_dim=12,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    )


FAMILY = Family(read, tiny, variants={"window": {"use_sliding_window": True, "sliding_window": 17}})
