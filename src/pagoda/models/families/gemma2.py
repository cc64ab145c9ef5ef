"""Gemma 2 (https://arxiv.org/abs/2408.00118): soft caps, a window in every other layer, norms around both branches."""

from __future__ import annotations

from typing import Any

from ..config import ConfigReader
from ..rope_config import read_rope
from ..spec import DecoderSpec
from ._gemma import GemmaParts, read_gemma
from ._read import read_dims, tiny_config, typed_windows
from .base import Family


def read(cfg: ConfigReader) -> DecoderSpec:
    d = read_dims(
        cfg,
        vocab_size=256000,
        hidden=2304,
        inner=9216,
        layers=26,
        heads=8,
        kv_heads=4,
        max_position=8192,
        head_dim=256,
    )
    default = ("full_attention" if i % 2 else "sliding_attention" for i in range(d.layers))
    parts = GemmaParts(
        windows=typed_windows(cfg, d.layers, default, cfg.opt_integer("sliding_window", 4096) or 0),
        ropes=[read_rope(cfg, d.head_dim, max_position=d.max_position)] * d.layers,
        qk_norm=False,
        soft_cap=cfg.opt_number("attn_logit_softcapping", 50.0) or 0.0,
        logit_soft_cap=cfg.opt_number("final_logit_softcapping", 30.0) or 0.0,
    )
    return read_gemma(cfg, d, parts)


def tiny() -> dict[str, Any]:
    return tiny_config(
        "gemma2",
        head_dim=12,
        sliding_window=18,
        num_hidden_layers=4,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    )


FAMILY = Family(read, tiny, variants={"uncapped": {"attn_logit_softcapping": None, "final_logit_softcapping": None}})
