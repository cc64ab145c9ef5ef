"""Command R7B (Cohere 2): parallel branches, interleaved rotary in windowed layers, no positions in full ones."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config, typed_windows
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    cfg.must_be("use_qk_norm", False, "Cohere 2 has no q/k norms")
    d = read_dims(
        cfg, vocab_size=256000, hidden=8192, inner=22528, layers=40, heads=64, kv_heads=None, max_position=8192
    )
    norm = NormSpec("layer", cfg.number("layer_norm_eps", 1e-5))
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "silu"))
    rope = read_rope(cfg, d.head_dim, interleaved=True, float32=True, max_position=d.max_position)
    bias = cfg.flag("attention_bias", False)
    every = cfg.integer("sliding_window_pattern", 4)
    default = ("sliding_attention" if (i + 1) % every else "full_attention" for i in range(d.layers))
    windows = typed_windows(cfg, d.layers, default, cfg.opt_integer("sliding_window", 4096) or 0)

    def block(window: int) -> BlockSpec:
        attn = AttentionSpec(
            num_heads=d.heads,
            num_kv_heads=d.kv_heads,
            head_dim=d.head_dim,
            scale=d.head_dim**-0.5,
            bias=bias,
            out_bias=bias,
            window=window,
            rope=rope if window else None,
        )
        return BlockSpec(attn, mlp, norm, "parallel")

    return DecoderSpec(
        family="cohere2",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(map(block, windows)),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", True),
        logit_scale=cfg.number("logit_scale", 0.0625),
    )


def tiny() -> dict[str, Any]:
    return tiny_config(
        "cohere2", num_hidden_layers=3, sliding_window=17, sliding_window_pattern=3, rope_theta=5e4, logit_scale=0.25
    )


FAMILY = Family(read, tiny, variants={"biases": {"attention_bias": True, "layer_types": ["full_attention"] * 3}})
