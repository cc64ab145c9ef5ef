"""What Gemma 2 and 3 share: norms that store w - 1, sandwich placement, scaled embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ConfigReader
from ..names import Names
from ..spec import AttentionSpec, BlockSpec, DecoderSpec, MLPSpec, NormSpec, RopeSpec
from ._read import Dims

NAMES = Names(norm3="pre_feedforward_layernorm", norm4="post_feedforward_layernorm")


@dataclass(frozen=True, slots=True)
class GemmaParts:
    """What differs between the two: windows and rotary specs by layer, q/k norms, soft caps."""

    windows: list[int]
    ropes: list[RopeSpec]
    qk_norm: bool
    soft_cap: float
    logit_soft_cap: float
    names: Names = NAMES


def read_gemma(cfg: ConfigReader, d: Dims, parts: GemmaParts) -> DecoderSpec:
    cfg.must_be("use_bidirectional_attention", False, "only causal attention generates")
    norm = NormSpec("rms", cfg.number("rms_norm_eps", 1e-6), offset=1.0)
    mlp = MLPSpec(d.inner, cfg.act("hidden_activation", "gelu_pytorch_tanh"))
    bias, scale = cfg.flag("attention_bias", False), cfg.number("query_pre_attn_scalar", 256) ** -0.5

    def block(window: int, rope: RopeSpec) -> BlockSpec:
        attn = AttentionSpec(
            num_heads=d.heads,
            num_kv_heads=d.kv_heads,
            head_dim=d.head_dim,
            scale=scale,
            bias=bias,
            out_bias=bias,
            window=window,
            soft_cap=parts.soft_cap,
            rope=rope,
            qk_norm=norm if parts.qk_norm else None,
        )
        return BlockSpec(attn, mlp, norm, "sandwich")

    return DecoderSpec(
        family=cfg.family,
        vocab_size=d.vocab_size,
        hidden_size=d.hidden,
        blocks=tuple(map(block, parts.windows, parts.ropes)),
        final_norm=norm,
        max_position=d.max_position,
        tied=cfg.flag("tie_word_embeddings", True),
        names=parts.names,
        embed_scale=d.hidden**0.5,
        logit_soft_cap=parts.logit_soft_cap,
    )
