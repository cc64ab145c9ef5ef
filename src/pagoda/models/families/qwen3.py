"""Qwen3 (https://arxiv.org/abs/2505.09388): no q, k, v biases, but an RMSNorm over every q and k head."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config, upper_windows
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(
        cfg,
        vocab_size=151936,
        hidden=4096,
        inner=22016,
        layers=32,
        heads=32,
        kv_heads=32,
        max_position=32768,
        head_dim=128,
    )
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "silu"))
    rope = read_rope(cfg, d.head_dim, max_position=d.max_position)
    bias = cfg.flag("attention_bias", False)

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
            qk_norm=norm,
        )
        return BlockSpec(attn, mlp, norm)

    return DecoderSpec(
        family="qwen3",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(block(window) for window in upper_windows(cfg, d.layers)),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return tiny_config("qwen3", head_dim=12, tie_word_embeddings=True)


WINDOW = {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1, "attention_bias": True}
FAMILY = Family(read, tiny, variants={"window": WINDOW})
