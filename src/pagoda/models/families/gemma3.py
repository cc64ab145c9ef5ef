"""Multimodal Gemma 3 checkpoints: their text model alone is loaded; images are not read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config import ConfigReader
from ..spec import DecoderSpec
from ._gemma import NAMES
from ._gemma3 import read_text
from .base import Family
from .gemma3_text import tiny as tiny_text

TOWERS = r"(model\.)?(vision_tower|multi_modal_projector)\..*"
MULTIMODAL = replace(
    NAMES,
    renames=(
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
        ("language_model.", "model."),
    ),
    ignored=(*NAMES.ignored, TOWERS),
)


def read(cfg: ConfigReader) -> DecoderSpec:
    text = dict(cfg.table("text_config") or {})
    if cfg.raw.get("tie_word_embeddings") is not None:
        text["tie_word_embeddings"] = cfg.raw["tie_word_embeddings"]
    return read_text(ConfigReader(text, cfg.family), MULTIMODAL)


def tiny() -> dict[str, Any]:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 16,
        "patch_size": 8,
    }
    return {
        "model_type": "gemma3",
        "text_config": tiny_text(),
        "vision_config": vision,
        "mm_tokens_per_image": 4,
        "image_token_index": 95,
        "boi_token_index": 94,
        "eoi_token_index": 93,
    }


FAMILY = Family(read, tiny)
