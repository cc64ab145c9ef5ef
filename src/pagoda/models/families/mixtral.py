"""Mixtral (https://arxiv.org/abs/2401.04088): Mistral with eight experts, two of them per token."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MoESpec, NormSpec, RouterSpec
from ._read import read_dims, tiny_config
from .base import Family

NAMES = Names(
    router="block_sparse_moe.gate",
    router_aliases=("mlp.gate",),
    expert="block_sparse_moe.experts.{e}.",
    expert_gate="w1",
    expert_up="w3",
    expert_down="w2",
)


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(cfg, vocab_size=32000, hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, max_position=131072)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-5))
    attn = AttentionSpec(
        num_heads=d.heads,
        num_kv_heads=d.kv_heads,
        head_dim=d.head_dim,
        scale=d.head_dim**-0.5,
        window=cfg.opt_integer("sliding_window") or 0,
        rope=read_rope(cfg, d.head_dim, default_theta=1e6, max_position=d.max_position),
    )
    router = RouterSpec("softmax", cfg.integer("num_experts_per_tok", 2), normalize=True)
    mlp = MoESpec(cfg.integer("num_local_experts", 8), d.inner, cfg.act("hidden_act", "silu"), router)
    return DecoderSpec(
        family="mixtral",
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=(BlockSpec(attn, mlp, norm),) * d.layers,
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        names=NAMES,
    )


def tiny() -> dict[str, Any]:
    return tiny_config("mixtral", intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=25)


FAMILY = Family(read, tiny)
