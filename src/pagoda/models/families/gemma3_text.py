"""Gemma 3, text only (https://arxiv.org/abs/2503.19786): five windowed layers to one full, two thetas."""

from __future__ import annotations

from typing import Any

from ._gemma3 import VARIANTS, read_text
from ._read import tiny_config
from .base import Family


def tiny() -> dict[str, Any]:
    return tiny_config(
        "gemma3_text",
        head_dim=12,
        sliding_window=18,
        sliding_window_pattern=3,
        num_hidden_layers=4,
        query_pre_attn_scalar=16,
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )


FAMILY = Family(read_text, tiny, VARIANTS)
