"""Qwen2 and Qwen2.5 (https://arxiv.org/abs/2407.10671): q, k, v biases; a window in the upper layers if asked for."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config, upper_windows
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(
        cfg, vocab_size=151936, hidden=4096, inner=22016, layers=32, heads=32, kv_heads=32, max_position=32768
    )
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "silu"))
    rope = read_rope(cfg, d.head_dim, max_position=d.max_position)

    def block(window: int) -> BlockSpec:
        attn = AttentionSpec(d.heads, d.kv_heads, d.head_dim, d.head_dim**-0.5, bias=True, window=window, rope=rope)
        return BlockSpec(attn, mlp, norm)

    return DecoderSpec(
        family="qwen2",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(block(window) for window in upper_windows(cfg, d.layers)),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return tiny_config(
        "qwen2", num_hidden_layers=3, use_sliding_window=True, sliding_window=17, max_window_layers=1, rope_theta=1e6
    )


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
FAMILY = Family(
    read,
    tiny,
    variants={
        "full": {"use_sliding_window": False, "tie_word_embeddings": True, "rope_scaling": YARN},
        "layer_types": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    },
)
