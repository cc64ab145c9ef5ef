"""GPT-NeoX and Pythia (https://arxiv.org/abs/2304.01373): parallel residual, partial rotary, q, k, v fused by head."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import tiny_config, whole_head_dim
from .base import REMOVED, Family

NAMES = Names(
    embed="gpt_neox.embed_in",
    layer="gpt_neox.layers.{i}.",
    final_norm="gpt_neox.final_layer_norm",
    lm_head="embed_out",
    lm_head_aliases=("lm_head",),
    qkv_layout="per_head",
    qkv="attention.query_key_value",
    out="attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    optional_prefix="gpt_neox.",
    ignored=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)


def read(cfg: ConfigReader) -> DecoderSpec:
    hidden, heads = cfg.integer("hidden_size", 6144), cfg.integer("num_attention_heads", 64)
    head_dim, max_position = whole_head_dim(cfg, hidden, heads), cfg.integer("max_position_embeddings", 2048)
    norm = NormSpec("layer", cfg.number("layer_norm_eps", 1e-5), bias=True)
    rope = read_rope(
        cfg,
        head_dim,
        theta_key="rotary_emb_base",
        partial_key="rotary_pct",
        default_partial=0.25,
        max_position=max_position,
    )
    bias = cfg.flag("attention_bias", True)
    attn = AttentionSpec(heads, heads, head_dim, head_dim**-0.5, bias=bias, out_bias=bias, rope=rope)
    mlp = MLPSpec(cfg.integer("intermediate_size", 24576), cfg.act("hidden_act", "gelu"), gated=False, bias=True)
    placement = "parallel_two" if cfg.flag("use_parallel_residual", True) else "pre"
    return DecoderSpec(
        family="gpt_neox",
        vocab_size=cfg.integer("vocab_size", 50432),
        hidden_size=hidden,
        blocks=(BlockSpec(attn, mlp, norm, placement),) * cfg.integer("num_hidden_layers", 44),
        final_norm=norm,
        max_position=max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        names=NAMES,
    )


def tiny() -> dict[str, Any]:
    return tiny_config("gpt_neox", num_key_value_heads=4, rotary_pct=0.25, rotary_emb_base=10000)


ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
FAMILY = Family(
    read,
    tiny,
    variants={
        "serial": {"use_parallel_residual": False, "attention_bias": False},
        "rope_parameters": {"rope_parameters": ROPE, "rotary_pct": REMOVED, "rotary_emb_base": REMOVED},
    },
)
