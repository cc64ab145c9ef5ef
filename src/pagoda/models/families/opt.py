"""OPT (https://arxiv.org/abs/2205.01068): learned positions from row 2 on; the 350m size norms after each branch."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec
from ._read import whole_head_dim
from .base import Family

OFFSET = 2  # the first two rows of the position table are never used

NAMES = Names(
    embed="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    project_in="model.decoder.project_in",
    project_out="model.decoder.project_out",
    layer="model.decoder.layers.{i}.",
    final_norm="model.decoder.final_layer_norm",
    norm1="self_attn_layer_norm",
    norm2="final_layer_norm",
    out="self_attn.out_proj",
    up="fc1",
    down="fc2",
)


def read(cfg: ConfigReader) -> DecoderSpec:
    hidden, heads = cfg.integer("hidden_size", 768), cfg.integer("num_attention_heads", 12)
    head_dim, max_position = whole_head_dim(cfg, hidden, heads), cfg.integer("max_position_embeddings", 2048)
    affine, bias = cfg.flag("layer_norm_elementwise_affine", True), cfg.flag("enable_bias", True)
    norm = NormSpec("layer", 1e-5, bias=affine, affine=affine)
    before = cfg.flag("do_layer_norm_before", True)
    attn = AttentionSpec(heads, heads, head_dim, head_dim**-0.5, bias=bias, out_bias=bias)
    mlp = MLPSpec(cfg.integer("ffn_dim", 3072), cfg.act("activation_function", "relu"), gated=False, bias=bias)
    return DecoderSpec(
        family="opt",
        vocab_size=cfg.integer("vocab_size", 50272),
        hidden_size=hidden,
        blocks=(BlockSpec(attn, mlp, norm, "pre" if before else "post_residual"),)
        * cfg.integer("num_hidden_layers", 12),
        final_norm=norm if before and not cfg.flag("_remove_final_layer_norm", False) else None,
        max_position=max_position,
        tied=cfg.flag("tie_word_embeddings", True),
        names=NAMES,
        embed_dim=cfg.opt_integer("word_embed_proj_dim") or hidden,
        num_positions=max_position + OFFSET,
        position_offset=OFFSET,
    )


def tiny() -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 96,
        "hidden_size": 32,
        "ffn_dim": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }


FAMILY = Family(
    read,
    tiny,
    variants={
        "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 24},
        "plain": {"enable_bias": False, "layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True},
    },
)
