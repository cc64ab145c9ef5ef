"""SmolLM3 (https://huggingface.co/blog/smollm3): Llama with every fourth layer free of positions."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config, typed_windows
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=128256, hidden=2048, inner=11008, layers=36, heads=16, kv_heads=4, max_position=32768)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    mlp = MLPSpec(d.inner, cfg.act("hidden_act", "silu"), bias=cfg.flag("mlp_bias", False))
    rope = read_rope(cfg, d.head_dim, default_theta=2e6, max_position=d.max_position)
    bias, with_rope = cfg.flag("attention_bias", False), _with_rope(cfg, d.layers)

    def block(rotated: bool, window: int) -> BlockSpec:
        attn = AttentionSpec(
            num_heads=d.heads,
            num_kv_heads=d.kv_heads,
            head_dim=d.head_dim,
            scale=d.head_dim**-0.5,
            bias=bias,
            out_bias=bias,
            window=window,
            rope=rope if rotated else None,
        )
        return BlockSpec(attn, mlp, norm)

    return DecoderSpec(
        family="smollm3",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(map(block, with_rope, _windows(cfg, d.layers, with_rope))),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", True),
    )


def _with_rope(cfg: ConfigReader, num_layers: int) -> list[bool]:
    """1 in ``no_rope_layers`` means that the layer has rotary positions."""
    interval = cfg.integer("no_rope_layer_interval", 4)
    given = cfg.integers("no_rope_layers", [int((i + 1) % interval != 0) for i in range(num_layers)])
    if len(given) < num_layers:
        raise cfg.error("no_rope_layers", list(given), f"a list of at least {num_layers} zeros and ones")
    return [bool(flag) for flag in given[:num_layers]]


def _windows(cfg: ConfigReader, num_layers: int, with_rope: list[bool]) -> list[int]:
    window = (cfg.opt_integer("sliding_window") or 0) if cfg.flag("use_sliding_window", False) else 0
    default = ("sliding_attention" if window and not rotated else "full_attention" for rotated in with_rope)
    return typed_windows(cfg, num_layers, default, window)


def tiny() -> dict[str, Any]:
    return tiny_config("smollm3", num_hidden_layers=4, rope_theta=5e4)


WINDOW = {"use_sliding_window": True, "sliding_window": 17, "no_rope_layers": [1, 0, 0, 1], "mlp_bias": True}
FAMILY = Family(read, tiny, variants={"window": {**WINDOW, "attention_bias": True}})
