"""Phi-3, Phi-3.5 and Phi-4-mini (https://arxiv.org/abs/2404.14219): fused projections, partial rotary, LongRoPE."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config
from .base import REMOVED, Family

NAMES = Names(qkv_layout="stacked", qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj")


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=32064, hidden=3072, inner=8192, layers=32, heads=32, kv_heads=None, max_position=4096)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-5))
    rope = read_rope(
        cfg,
        d.head_dim,
        partial_key="partial_rotary_factor",
        rename={"su": "longrope", "yarn": "longrope"},
        max_position=d.max_position,
        original_max_position=cfg.integer("original_max_position_embeddings", 4096),
    )
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        window=cfg.opt_integer("sliding_window") or 0,
        rope=rope,
    )
    return DecoderSpec(
        family="phi3",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(BlockSpec(attn, MLPSpec(d.inner, cfg.act("hidden_act", "silu")), norm),) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        names=NAMES,
    )


SHORT, LONG = [1.0, 1.1, 1.5], [1.0, 3.0, 9.0]


def tiny() -> dict[str, Any]:
    return tiny_config(
        "phi3",
        partial_rotary_factor=0.75,
        sliding_window=27,
        original_max_position_embeddings=128,
        rope_scaling={"type": "longrope", "short_factor": SHORT, "long_factor": LONG},
    )


FAMILY = Family(
    read,
    tiny,
    variants={"plain": {"rope_scaling": REMOVED, "partial_rotary_factor": 0.5, "sliding_window": None}},
)
