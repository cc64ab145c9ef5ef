"""What a model's own files say about generation: sampling defaults and end-of-sequence ids. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagoda.core.errors import ModelError

from .tokenizer import Tokenizer, read_json

_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")


def read_generation(folder: Path) -> dict[str, Any]:
    """The sampling defaults of generation_config.json; a field that is not there, or null, is left out.

    Keys: do_sample, temperature, top_k, top_p, min_p, typical_p, repetition_penalty, and the token ids eos_token_id
    (always a list), bos_token_id, pad_token_id. Raises ModelError naming a value of a wrong type.
    """
    raw = read_json(folder / "generation_config.json")
    where = folder / "generation_config.json"
    found: dict[str, Any] = {}
    for name in _NUMBERS:
        if (value := raw.get(name)) is not None:
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ModelError(f"{where}: {name}={value!r}; it must be a number")
            found[name] = float(value)
    if (value := raw.get("top_k")) is not None:
        found["top_k"] = _token_id(where, "top_k", value)
    if (value := raw.get("do_sample")) is not None:
        if not isinstance(value, bool):
            raise ModelError(f"{where}: do_sample={value!r}; it must be true or false")
        found["do_sample"] = value
    for name in ("bos_token_id", "pad_token_id"):
        if (value := raw.get(name)) is not None:
            found[name] = _token_id(where, name, value)
    if (ids := _ids(where, raw)) is not None:
        found["eos_token_id"] = ids
    return found


def end_ids(
    folder: Path, generation: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer
) -> tuple[int, ...]:
    """The ids that end a sequence, as transformers' ``generate`` chooses them.

    generation_config.json decides; without a word from it config.json does, and then the tokenizer.
    """
    if "eos_token_id" in generation:
        return tuple(generation["eos_token_id"])
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and (ids := _ids(folder / "config.json", part)) is not None:
            return tuple(ids)
    return () if tokenizer.eos_id is None else (tokenizer.eos_id,)


def _ids(where: Path, raw: Mapping[str, Any]) -> list[int] | None:
    value = raw.get("eos_token_id")
    if value is None:
        return None
    return [_token_id(where, "eos_token_id", v) for v in (value if isinstance(value, list) else [value])]


def _token_id(where: Path, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise ModelError(f"{where}: {name}={value!r}; it must be a whole number")
    return value
