"""gpt-oss (https://arxiv.org/abs/2508.10925): attention sinks, windows in every other layer, clamped SwiGLU."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MoESpec, NormSpec, RouterSpec
from ._read import read_dims, tiny_config, typed_windows
from .base import Family

NAMES = Names(router="mlp.router", experts_interleaved=True)
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def read(cfg: ConfigReader) -> DecoderSpec:
    cfg.must_be("hidden_act", "silu", "the experts apply their own clamped SwiGLU")
    d = read_dims(
        cfg,
        vocab_size=201088,
        hidden=2880,
        inner=2880,
        layers=36,
        heads=64,
        kv_heads=8,
        max_position=131072,
        head_dim=64,
    )
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-5), fp32_weight=True)
    rope = read_rope(cfg, d.head_dim, default_theta=150000.0, default=YARN, max_position=d.max_position)
    bias, mlp = cfg.flag("attention_bias", True), _experts(cfg, d.inner)
    default = ("full_attention" if i % 2 else "sliding_attention" for i in range(d.layers))

    def block(window: int) -> BlockSpec:
        attn = AttentionSpec(
            num_heads=d.heads,
            num_kv_heads=d.kv_heads,
            head_dim=d.head_dim,
            scale=d.head_dim**-0.5,
            bias=bias,
            out_bias=bias,
            window=window,
            rope=rope,
            sinks=True,
        )
        return BlockSpec(attn, mlp, norm)

    windows = typed_windows(cfg, d.layers, default, cfg.opt_integer("sliding_window", 128) or 0)
    return DecoderSpec(
        family="gpt_oss",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(map(block, windows)),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        names=NAMES,
    )


def _experts(cfg: ConfigReader, inner: int) -> MoESpec:
    return MoESpec(
        num_experts=cfg.integer("num_local_experts", 128),
        inner=inner,
        act="swiglu_oai",
        router=RouterSpec("topk_softmax", cfg.integer("num_experts_per_tok", 4), bias=True),
        bias=True,
        alpha=cfg.number("swiglu_alpha", 1.702),
        limit=cfg.number("swiglu_limit", 7.0),
    )


def tiny() -> dict[str, Any]:
    yarn = {**YARN, "factor": 8.0, "original_max_position_embeddings": 32}
    return tiny_config(
        "gpt_oss",
        head_dim=8,
        sliding_window=18,
        num_local_experts=4,
        num_experts_per_tok=2,
        intermediate_size=24,
        rope_theta=150000.0,
        rope_scaling=yarn,
        swiglu_limit=1.5,
    )


FAMILY = Family(read, tiny)
