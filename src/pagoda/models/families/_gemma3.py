"""Gemma 3's text model, alone (`gemma3_text`) or inside a multimodal checkpoint (`gemma3`)."""

from __future__ import annotations

from ..config import ConfigReader
from ..names import Names
from ..rope_config import read_rope
from ..spec import DecoderSpec, RopeSpec
from ._gemma import NAMES, GemmaParts, read_gemma
from ._read import read_dims, typed_windows
from .base import REMOVED

ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
VARIANTS = {
    "rope_parameters": {"rope_parameters": ROPES, "rope_scaling": REMOVED, "final_logit_softcapping": 3.0},
}


def read_text(cfg: ConfigReader, names: Names = NAMES) -> DecoderSpec:
    cfg.must_be("attn_logit_softcapping", None, "Gemma 3 has no soft cap on attention scores")
    d = read_dims(
        cfg,
        vocab_size=262208,
        hidden=2304,
        inner=9216,
        layers=26,
        heads=8,
        kv_heads=4,
        max_position=131072,
        head_dim=256,
    )
    every = cfg.integer("sliding_window_pattern", 6)
    default = ("sliding_attention" if (i + 1) % every else "full_attention" for i in range(d.layers))
    windows = typed_windows(cfg, d.layers, default, cfg.opt_integer("sliding_window", 4096) or 0)
    far = read_rope(cfg, d.head_dim, default_theta=1e6, layer_type="full_attention", max_position=d.max_position)
    near = _local_rope(cfg, d.head_dim, d.max_position)
    parts = GemmaParts(
        windows=windows,
        ropes=[near if window else far for window in windows],
        qk_norm=True,
        soft_cap=0.0,
        logit_soft_cap=cfg.opt_number("final_logit_softcapping") or 0.0,
        names=names,
    )
    return read_gemma(cfg, d, parts)


def _local_rope(cfg: ConfigReader, head_dim: int, max_position: int) -> RopeSpec:
    """Sliding layers: their own theta, and never the ``rope_scaling`` of the old spelling."""
    local = ConfigReader({key: value for key, value in cfg.raw.items() if key != "rope_scaling"}, cfg.family)
    return read_rope(
        local,
        head_dim,
        default_theta=1e4,
        theta_key="rope_local_base_freq",
        layer_type="sliding_attention",
        max_position=max_position,
    )
