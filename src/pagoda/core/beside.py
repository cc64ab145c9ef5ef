"""Where what was learned of a model is kept."""

from __future__ import annotations

from pathlib import Path


def beside(model: Path, folder: str) -> Path:
    """In its folder; of a GGUF file, beside which others may lie, in one that has the file's name before."""
    return model.with_name(f"{model.name}.{folder}") if model.is_file() else model / folder
