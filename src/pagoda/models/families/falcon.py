"""Falcon (https://arxiv.org/abs/2311.16867): the 7b, the 40b/180b/11b "new decoder", and the ALiBi variant (rw)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pagoda.core.errors import ModelError

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec, Placement
from ._read import whole_head_dim
from .base import Family

NAMES = Names(
    embed="transformer.word_embeddings",
    layer="transformer.h.{i}.",
    final_norm="transformer.ln_f",
    qkv_layout="per_group",
    qkv="self_attention.query_key_value",
    out="self_attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    optional_prefix="transformer.",
    ignored=(r".*\.rotary(_emb)?\.inv_freq", r".*\.maybe_rotary\.inv_freq"),
)


def read(cfg: ConfigReader) -> DecoderSpec:
    hidden, heads = cfg.integer("n_embed", cfg.integer("hidden_size", 4544)), cfg.integer("num_attention_heads", 71)
    head_dim, max_position = whole_head_dim(cfg, hidden, heads), cfg.integer("max_position_embeddings", 2048)
    norm = NormSpec("layer", cfg.number("layer_norm_epsilon", 1e-5), bias=True)
    new, bias, alibi = cfg.flag("new_decoder_architecture", False), cfg.flag("bias", False), cfg.flag("alibi", False)
    kv_heads = 1 if cfg.flag("multi_query", True) and not new else cfg.opt_integer("num_kv_heads") or heads
    attn = AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        bias=bias,
        out_bias=bias,
        rope=None if alibi else read_rope(cfg, head_dim, max_position=max_position),
        alibi_slopes=alibi_slopes(heads, head_dim) if alibi else (),
    )
    act = cfg.act("activation", "gelu")
    mlp = MLPSpec(cfg.opt_integer("ffn_hidden_size") or 4 * hidden, act, gated=False, bias=bias)
    placement, names = _placement(cfg, new)
    return DecoderSpec(
        family="falcon",
        vocab_size=cfg.integer("vocab_size", 65024),
        hidden_size=hidden,
        blocks=(BlockSpec(attn, mlp, norm, placement),) * cfg.integer("num_hidden_layers", 32),
        final_norm=norm,
        max_position=max_position,
        tied=cfg.flag("tie_word_embeddings", True),
        names=names,
    )


def _placement(cfg: ConfigReader, new: bool) -> tuple[Placement, Names]:
    """Parallel with one norm (7b) or two (40b), or serial (rw)."""
    parallel = cfg.flag("parallel_attn", True)
    num_norms = cfg.opt_integer("num_ln_in_parallel_attn") or (2 if new else 1)
    if new and not parallel:
        raise ModelError("falcon config: parallel_attn=false cannot be with new_decoder_architecture=true")
    if num_norms > 2 or (num_norms == 2 and not new):
        raise cfg.error("num_ln_in_parallel_attn", num_norms, "1, or 2 with new_decoder_architecture")
    if num_norms == 2:
        return "parallel_two", replace(NAMES, norm1="ln_attn", norm2="ln_mlp")
    return ("parallel" if parallel else "pre"), NAMES


def alibi_slopes(num_heads: int, head_dim: int) -> tuple[float, ...]:
    """ALiBi's slopes (https://arxiv.org/abs/2108.12409), over sqrt(head_dim) because Falcon adds them before scaling.

    A geometric series over the next lower power of two of heads; further heads take every other term of the finer one.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-4 * (2 * h + 1) / power) for h in range(num_heads - power)]
    return tuple(slope / math.sqrt(head_dim) for slope in slopes)


def tiny() -> dict[str, Any]:
    return {
        "model_type": "falcon",
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


FAMILY = Family(
    read,
    tiny,
    variants={
        "new": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        "new_one_norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "rw": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "ffn_hidden_size": 40},
    },
)
