"""Which models are on this machine, and what a model is like before it is loaded. No torch, no download of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda.core.errors import ModelError

from .resolve import EMBEDDED, is_hub_id, resolve


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this machine. ``family`` is its ``model_type``, empty where its config cannot be read."""

    name: str
    path: Path
    num_bytes: int
    family: str


def embedded_model() -> FoundModel:
    """The model inside the package. Raises ModelError if the installation lost it."""
    path = resolve(EMBEDDED)
    num_bytes = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return FoundModel(EMBEDDED, path, num_bytes, _family(path))


def cached_models() -> list[FoundModel]:
    """Models with weights in the Hugging Face cache (HF_HOME and HF_HUB_CACHE are respected), by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repo in repos:
        folders = [Path(revision.snapshot_path) for revision in repo.revisions]
        whole = [
            folder for folder in folders if (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
        ]
        if repo.repo_type == "model" and whole:
            found.append(FoundModel(repo.repo_id, whole[0], repo.size_on_disk, _family(whole[0])))
    return sorted(found, key=lambda model: model.name)


def read_config(path_or_id: str) -> dict[str, Any]:
    """The config of a model: that of its GGUF file, or config.json from its folder, the hub cache or the hub.

    Raises ModelError, one line, where there is none or it is not a JSON object.
    """
    if path_or_id == EMBEDDED or not is_hub_id(path_or_id) or Path(path_or_id).exists():
        return _config_at(resolve(path_or_id))
    cached = {model.name: model.path for model in cached_models()}
    return _read(cached[path_or_id] / "config.json" if path_or_id in cached else _download(path_or_id))


def _config_at(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return _read(path / "config.json")
    from ..weights.gguf_parts import read_parts
    from .gguf import config_of

    return config_of(read_parts(path))


def folder_of(path_or_id: str) -> Path | None:
    """The model's folder on this machine; None where only its config is to be had."""
    if path_or_id == EMBEDDED or not is_hub_id(path_or_id) or Path(path_or_id).exists():
        return resolve(path_or_id)
    return next((model.path for model in cached_models() if model.name == path_or_id), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{file.parent}: has no config.json; give the folder of a model in Hugging Face format"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error})") from error
    if not isinstance(config, Mapping):
        raise ModelError(f"{file}: must hold a JSON object, got {type(config).__name__}")
    return dict(config)


def _download(repo: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        HfApi().model_info(repo, timeout=10)  # says no at once; the download would try for 23 s without a network
        return Path(hf_hub_download(repo, "config.json"))
    except Exception as error:  # many kinds: bad name, HTTP, offline, gated, not found; each is one line for the user
        raise ModelError(
            f"{repo}: not 'lantern', not a local folder, not in the Hugging Face cache, and not to be had from the hub "
            f"({type(error).__name__}); check the name and the network"
        ) from error


def _family(folder: Path) -> str:
    try:
        return str(_read(folder / "config.json").get("model_type", ""))
    except ModelError:
        return ""
