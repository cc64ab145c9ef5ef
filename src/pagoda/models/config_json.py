"""config.json of a model: where what it says is found. No torch: a plan reads it before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagoda.core.errors import ModelError
from pagoda.core.types import DTYPE_BYTES

from .tokenizer import read_json


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises ModelError when the folder is not a model in the Hugging Face form."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder}: no config.json; expected a folder in the Hugging Face form (config, weights, tokenizer)"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder}/config.json has no model_type; it must name an architecture, for example llama")
    return config


def quantization_config(config: Mapping[str, Any]) -> Any:
    """What config.json says about packed weights; None where they are plain."""
    return config.get("quantization_config") or text_config(config).get("quantization_config")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a nested config, or the config itself."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype that config.json says its weights have, where it says one that runs."""
    for part in (config, text_config(config)):
        for key in ("dtype", "torch_dtype"):
            stated = part.get(key)
            if isinstance(stated, str) and (name := stated.removeprefix("torch.")) in DTYPE_BYTES:
                return name
    return None
