"""The one door to transformers: tokenizer conversion and the modules behind the fallback. Import it late, it is slow.

Importing what is used here takes 2.5 s and 240 MB, so only folders that need it pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pagoda.core.errors import ModelError

if TYPE_CHECKING:
    import tokenizers


def convert_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, Mapping[str, str]]:
    """A folder with ``tokenizer.model`` or ``vocab.json`` + ``merges.txt``, converted; and its named special tokens.

    Raises ModelError when transformers cannot turn it into a fast tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # conversion fails in many ways; each is one line for the user
        raise ModelError(
            f"{folder}: the tokenizer cannot be converted ({one_line(error)}); add a tokenizer.json"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        kind = type(tokenizer).__name__
        raise ModelError(
            f"{folder}: {kind} has no fast form; convert it to a tokenizer.json and put that in the folder"
        )
    return backend, {name: str(value) for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def one_line(error: BaseException) -> str:
    """A foreign error's message without its line breaks, shortened."""
    return " ".join(str(error).split())[:300] or type(error).__name__
