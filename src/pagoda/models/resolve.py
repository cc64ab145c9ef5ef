"""From what a user types to a folder on this machine: ``lantern``, a local folder, or a Hugging Face hub id."""

from __future__ import annotations

import re
from pathlib import Path

from pagoda.core.errors import ModelError
from pagoda.weights.gguf_parts import is_later_part

EMBEDDED = "lantern"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
_FILES = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*.tiktoken"]


def resolve(path_or_id: str | Path) -> Path:
    """The model's folder, or its GGUF file; a hub id is fetched, or taken from the local cache without a network.

    Raises ModelError, one line: what was looked for, why it failed, what to do.
    """
    text = str(path_or_id)
    if not text.strip() or "\0" in text:
        raise ModelError(
            f"the model is {text!r}; expected 'lantern', a local folder, or a Hugging Face id like org/name"
        )
    path = Path(text).expanduser()
    if path.is_dir():
        return _in_folder(path.resolve())
    if path.suffix == ".gguf" and path.is_file():
        return path.resolve()
    if text == EMBEDDED:
        return _embedded()
    if path.exists():
        raise ModelError(_why_not_a_file(path))
    if not is_hub_id(text):
        raise ModelError(
            f"{text}: no such folder, and not a Hugging Face id (org/name); accepted: 'lantern', a folder, an id"
        )
    return _fetch(text)


def _in_folder(folder: Path) -> Path:
    """The folder, or the one GGUF file in a folder that is no Hugging Face model."""
    if (folder / "config.json").is_file():
        return folder
    files = sorted(file for file in folder.glob("*.gguf") if not is_later_part(file))
    if len(files) > 1:
        raise ModelError(f"{folder}: several GGUF files ({', '.join(f.name for f in files[:4])}); name one of them")
    return files[0] if files else folder


def _embedded() -> Path:
    # Beside this file, not importlib.resources: in an editable install that has two roots, and no path of its own.
    folder = Path(__file__).resolve().parents[1] / "assets" / EMBEDDED
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{EMBEDDED}: the embedded model is missing from this installation ({folder}); reinstall pagoda-llm"
        )
    return folder


def _why_not_a_file(path: Path) -> str:
    return f"{path}: is a file; give a GGUF file, or the folder that holds config.json and the weights"


def is_hub_id(text: str) -> bool:
    """Whether ``text`` reads like ``org/name`` or ``name`` on the Hugging Face hub."""
    return bool(_HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text and not text.endswith(".git")


def _fetch(repo: str) -> Path:
    """Downloads a snapshot without pickles, or finds it in the cache (HF_HUB_OFFLINE and HF_HOME are respected)."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=_FILES, ignore_patterns=["original/*", "*/*"]))
    except Exception as error:  # many kinds: HTTP, offline, gated, not found, disk; each is one line for the user
        cached = _cached(repo)
        if cached is not None and not _is_refusal(error):
            return cached
        raise ModelError(
            f"{repo}: not a local folder, and could not be fetched from the Hugging Face hub ({_reason(error)}); "
            "check the name and the network (or log in), download it elsewhere and give its folder, or use 'lantern'"
        ) from error


def _cached(repo: str) -> Path | None:
    """A complete snapshot in the local cache: one that has its config and some weights."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo, allow_patterns=_FILES, local_files_only=True))
    except Exception:  # not in the cache; the caller reports the first error
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _is_refusal(error: BaseException) -> bool:
    """The hub answered and said no: an old copy in the cache must not hide that."""
    return type(error).__name__ in {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"}


def _reason(error: BaseException) -> str:
    kind = type(error).__name__
    known = {
        "RepositoryNotFoundError": "no such model there, or it is private",
        "GatedRepoError": "it is gated: accept its licence on its page and log in",
        "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set and it is not in the cache",
        "LocalEntryNotFoundError": "no connection, and it is not in the cache",
    }
    return known.get(kind) or f"{kind}: {' '.join(str(error).split())[:200]}"
