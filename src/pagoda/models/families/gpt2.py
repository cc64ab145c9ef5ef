"""GPT-2: learned positions, q, k, v fused, weights stored ``[in, out]``."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import whole_head_dim
from .base import Family

NAMES = Names(
    embed="transformer.wte",
    positions="transformer.wpe",
    layer="transformer.h.{i}.",
    final_norm="transformer.ln_f",
    norm1="ln_1",
    norm2="ln_2",
    qkv_layout="stacked",
    qkv="attn.c_attn",
    out="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    conv1d=True,
    optional_prefix="transformer.",
    ignored=(r".*\.attn\.(bias|masked_bias)",),
)


def read(cfg: ConfigReader) -> DecoderSpec:
    cfg.must_be("add_cross_attention", False, "only decoders run on a paged KV cache")
    hidden = cfg.integer("n_embd", cfg.integer("hidden_size", 768))
    heads = cfg.integer("n_head", cfg.integer("num_attention_heads", 12))
    layers = cfg.integer("n_layer", cfg.integer("num_hidden_layers", 12))
    num_positions = cfg.integer("n_positions", cfg.integer("max_position_embeddings", 1024))
    head_dim = whole_head_dim(cfg, hidden, heads)
    norm = NormSpec("layer", cfg.number("layer_norm_epsilon", 1e-5), bias=True)
    act = cfg.act("activation_function", "gelu_new")
    mlp = MLPSpec(cfg.opt_integer("n_inner") or 4 * hidden, act, gated=False, bias=True)
    scale = head_dim**-0.5 if cfg.flag("scale_attn_weights", True) else 1.0
    by_layer = cfg.flag("scale_attn_by_inverse_layer_idx", False)

    def block(i: int) -> BlockSpec:
        layer_scale = scale / (i + 1) if by_layer else scale
        return BlockSpec(AttentionSpec(heads, heads, head_dim, layer_scale, bias=True, out_bias=True), mlp, norm)

    return DecoderSpec(
        family="gpt2",
        vocab_size=cfg.integer("vocab_size", 50257),
        hidden_size=hidden,
        blocks=tuple(block(i) for i in range(layers)),
        final_norm=norm,
        max_position=num_positions,
        tied=cfg.flag("tie_word_embeddings", True),
        names=NAMES,
        num_positions=num_positions,
    )


def tiny() -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": 96,
        "n_positions": 128,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


SCALED = {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "n_inner": 40}
FAMILY = Family(read, tiny, variants={"scaled": SCALED})
