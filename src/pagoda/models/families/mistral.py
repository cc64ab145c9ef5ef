"""Mistral (https://arxiv.org/abs/2310.06825): Llama with grouped queries and a sliding window in every layer."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import read_dims, tiny_config
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    cfg.must_be("layer_types", None, "alternating layers are the ministral family")
    d = read_dims(cfg, vocab_size=32000, hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, max_position=131072)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        window=cfg.opt_integer("sliding_window", 4096) or 0,
        rope=read_rope(cfg, d.head_dim, max_position=d.max_position),
    )
    return DecoderSpec(
        family="mistral",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(BlockSpec(attn, MLPSpec(d.inner, cfg.act("hidden_act", "silu")), norm),) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
    )


def tiny() -> dict[str, Any]:
    return tiny_config("mistral", sliding_window=19)


FAMILY = Family(read, tiny, variants={"full": {"sliding_window": None, "head_dim": 6}})
