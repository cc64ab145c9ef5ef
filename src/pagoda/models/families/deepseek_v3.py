"""DeepSeek-V3 and R1 (https://arxiv.org/abs/2412.19437): latent attention, sigmoid-routed experts in groups."""

from __future__ import annotations

from typing import Any

from pagoda.core.errors import ModelError

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope, yarn_mscale
from ..spec import BlockSpec, DecoderSpec, LatentSpec, MLPSpec, MoESpec, NormSpec, RouterSpec
from ._read import tiny_config
from .base import Family

LATENT_EPS = 1e-6  # the norms inside latent attention do not follow rms_norm_eps

NAMES = Names(
    shared_gate="mlp.shared_experts.gate_proj",
    shared_up="mlp.shared_experts.up_proj",
    shared_down="mlp.shared_experts.down_proj",
)


def read(cfg: ConfigReader) -> DecoderSpec:
    cfg.must_be("moe_layer_freq", 1, "every layer after the dense ones has experts")
    cfg.must_be("scoring_func", "sigmoid", "the router scores by sigmoid")
    cfg.must_be("topk_method", "noaux_tc", "the router picks with a correction bias")
    hidden, layers = cfg.integer("hidden_size", 7168), cfg.integer("num_hidden_layers", 61)
    max_position = cfg.integer("max_position_embeddings", 4096)
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6))
    act, num_dense = cfg.act("hidden_act", "silu"), cfg.integer("first_k_dense_replace", 3, least=0)
    attn, dense = _latent(cfg, max_position), MLPSpec(cfg.integer("intermediate_size", 18432), act)
    experts = _experts(cfg, act) if num_dense < layers else None
    blocks = (BlockSpec(attn, dense if experts is None or i < num_dense else experts, norm) for i in range(layers))
    # the layers after the last are heads for multi-token prediction; they take no part in plain decoding
    extra = rf"model\.layers\.({'|'.join(str(layers + n) for n in range(4))})\..*"
    return DecoderSpec(
        family="deepseek_v3",
        vocab_size=cfg.integer("vocab_size", 129280),
        hidden_size=hidden,
        blocks=tuple(blocks),
        final_norm=norm,
        max_position=max_position,
        tied=cfg.flag("tie_word_embeddings", False),
        names=NAMES.ignoring(extra),
    )


def _latent(cfg: ConfigReader, max_position: int) -> LatentSpec:
    nope_dim, rope_dim = cfg.integer("qk_nope_head_dim", 128), cfg.integer("qk_rope_head_dim", 64)
    rope = read_rope(cfg, rope_dim, interleaved=cfg.flag("rope_interleave", True), max_position=max_position)
    table = cfg.table("rope_scaling") or cfg.table("rope_parameters") or {}
    scale = (nope_dim + rope_dim) ** -0.5
    if rope.kind != "default" and table.get("mscale_all_dim"):
        scale *= yarn_mscale(rope.factor, float(table["mscale_all_dim"])) ** 2
    return LatentSpec(
        num_heads=cfg.integer("num_attention_heads", 128),
        q_rank=cfg.opt_integer("q_lora_rank", 1536) or 0,
        kv_rank=cfg.integer("kv_lora_rank", 512),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=cfg.integer("v_head_dim", 128),
        scale=scale,
        norm=NormSpec("rms", LATENT_EPS),
        rope=rope,
        bias=cfg.flag("attention_bias", False),
    )


def _experts(cfg: ConfigReader, act: str) -> MoESpec:
    num_experts, inner = cfg.integer("n_routed_experts", 256), cfg.integer("moe_intermediate_size", 2048)
    groups = cfg.integer("n_group", 8)
    if num_experts % groups or num_experts // groups < 2:
        raise ModelError(
            f"deepseek_v3 config: n_routed_experts={num_experts} needs n_group={groups} groups of 2 or more"
        )
    router = RouterSpec(
        "sigmoid",
        top_k=cfg.integer("num_experts_per_tok", 8),
        normalize=cfg.flag("norm_topk_prob", True),
        scaling=cfg.number("routed_scaling_factor", 2.5),
        num_groups=groups,
        topk_group=cfg.integer("topk_group", 4),
    )
    shared = MLPSpec(inner * cfg.integer("n_shared_experts", 1), act)
    return MoESpec(num_experts, inner, act, router, shared=shared)


def tiny() -> dict[str, Any]:
    yarn = {"type": "yarn", "factor": 8.0, "mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1}
    return tiny_config(
        "deepseek_v3",
        num_hidden_layers=3,
        num_key_value_heads=4,
        first_k_dense_replace=1,
        moe_intermediate_size=12,
        n_routed_experts=8,
        n_shared_experts=2,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        kv_lora_rank=20,
        q_lora_rank=24,
        qk_nope_head_dim=12,
        qk_rope_head_dim=8,
        v_head_dim=10,
        rope_scaling={**yarn, "original_max_position_embeddings": 32},
    )


PLAIN = {"q_lora_rank": None, "rope_scaling": None, "rope_interleave": False, "norm_topk_prob": False}
BIASES = {"attention_bias": True}
FAMILY = Family(read, tiny, variants={"plain": {**PLAIN, **BIASES}, "biases": BIASES})
