"""Qwen1.5-MoE and Qwen2-MoE (https://arxiv.org/abs/2407.10671): experts beside a gated shared expert."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, MoESpec, NormSpec, RouterSpec
from ._read import read_dims, sparse_layers, tiny_config, typed_windows
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=151936, hidden=2048, inner=5632, layers=24, heads=16, kv_heads=16, max_position=32768)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    rope = read_rope(cfg, d.head_dim, max_position=d.max_position)
    bias, dense, experts = cfg.flag("qkv_bias", True), MLPSpec(d.inner, cfg.act("hidden_act", "silu")), _experts(cfg)

    def block(window: int, sparse: bool) -> BlockSpec:
        attn = AttentionSpec(d.heads, d.kv_heads, d.head_dim, d.head_dim**-0.5, bias=bias, window=window, rope=rope)
        return BlockSpec(attn, experts if sparse else dense, norm)

    return DecoderSpec(
        family="qwen2_moe",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(map(block, _windows(cfg, d.layers), sparse_layers(cfg, d.layers))),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def _experts(cfg: ConfigReader) -> MoESpec:
    act = cfg.act("hidden_act", "silu")
    return MoESpec(
        num_experts=cfg.integer("num_experts", 60),
        inner=cfg.integer("moe_intermediate_size", 1408),
        act=act,
        router=RouterSpec("softmax", cfg.integer("num_experts_per_tok", 4), cfg.flag("norm_topk_prob", False)),
        shared=MLPSpec(cfg.integer("shared_expert_intermediate_size", 5632), act),
        shared_gate=True,
    )


def _windows(cfg: ConfigReader, num_layers: int) -> list[int]:
    """Unlike Qwen2: every other layer below ``max_window_layers``."""
    on = cfg.flag("use_sliding_window", False)
    window = (cfg.opt_integer("sliding_window", 4096) or 0) if on else 0
    first = cfg.integer("max_window_layers", 28, least=0)
    default = ("sliding_attention" if on and i % 2 == 0 and i < first else "full_attention" for i in range(num_layers))
    return typed_windows(cfg, num_layers, default, window)


def tiny() -> dict[str, Any]:
    return tiny_config(
        "qwen2_moe",
        num_hidden_layers=3,
        decoder_sparse_step=1,
        mlp_only_layers=[1],
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=20,
    )


WINDOW = {"use_sliding_window": True, "sliding_window": 17, "decoder_sparse_step": 2, "norm_topk_prob": True}
FAMILY = Family(read, tiny, variants={"window": {**WINDOW, "qkv_bias": False}})
