"""A byte-level BPE vocabulary cut to what a text needs: tokens, merges, and every id that a folder's files name.

Dynamic Embedding Pruning (https://arxiv.org/abs/2309.08708) keeps the embeddings of the tokens that a data set has, and
maps ids to them while the pruned model is used. Here the vocabulary itself is rewritten: a merge stays if a kept token
is made by it, and every byte stays, so that the text's tokens are the same ones, and any other text can still be said,
in more and shorter tokens. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pagoda.core.errors import ModelError

ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "unk_token_id")


def kept_tokens(where: str, tokenizer: Mapping[str, Any], used: Iterable[int]) -> list[int]:
    """Ids that stay, ascending: the used ones, what they are merged from, all bytes and all special tokens.

    ``tokenizer`` is tokenizer.json. Raises ModelError for one that is no BPE over bytes.
    """
    model = tokenizer.get("model", {})
    vocab: dict[str, int] = model.get("vocab", {})
    if model.get("type") != "BPE" or not isinstance(vocab, dict):
        raise ModelError(f"{where}: vocabularies are pruned where tokenizer.json has a BPE, not {model.get('type')}")
    over_bytes = [t for t in vocab if len(t) == 1] if _byte_level(tokenizer) else [t for t in vocab if _is_byte(t)]
    if len(over_bytes) < 256:
        raise ModelError(
            f"{where}: its tokenizer does not know every byte, so text outside the vocabulary would be lost"
        )
    made_from = {first + second: (first, second) for first, second in reversed(_merges(model))}
    names = {number: token for token, number in vocab.items()}
    kept = {entry["id"] for entry in tokenizer.get("added_tokens", [])} | {vocab[t] for t in vocab if len(t) == 1}
    kept |= {vocab[t] for t in over_bytes}
    waiting = [names[number] for number in used if number in names]
    while waiting:
        token = waiting.pop()
        if vocab[token] not in kept or len(token) > 1:
            kept.add(vocab[token])
            waiting += [part for part in made_from.get(token, ()) if part in vocab and vocab[part] not in kept]
    return sorted(kept)


def cut_tokenizer(tokenizer: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """tokenizer.json with the kept tokens alone, under new ids: their places in ``kept``."""
    new = {old: number for number, old in enumerate(kept)}
    model = dict(tokenizer["model"])
    model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    model["merges"] = [[a, b] for a, b in _merges(tokenizer["model"]) if {a, b, a + b} <= model["vocab"].keys()]
    added = [{**entry, "id": new[entry["id"]]} for entry in tokenizer.get("added_tokens", [])]
    return {**_renumbered(tokenizer, new), "model": model, "added_tokens": added}


def cut_config(config: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """A config.json or generation_config.json whose ids are the new ones."""
    new = {old: number for number, old in enumerate(kept)}
    found = dict(config)
    for key in ID_KEYS:
        if isinstance(found.get(key), int):
            found[key] = new.get(found[key])
        elif isinstance(found.get(key), list):
            found[key] = [new[old] for old in found[key] if old in new]
    if "vocab_size" in found:
        found["vocab_size"] = len(kept)
    return found


def cut_tokenizer_config(config: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """tokenizer_config.json: its added tokens by new ids."""
    new = {str(old): str(number) for number, old in enumerate(kept)}
    added = config.get("added_tokens_decoder")
    if not isinstance(added, Mapping):
        return dict(config)
    return {**config, "added_tokens_decoder": {new[old]: entry for old, entry in added.items() if old in new}}


def _renumbered(data: Any, new: Mapping[int, int]) -> Any:
    """Post-processors name special tokens by id: ``"ids": [1]``."""
    if isinstance(data, Mapping):
        return {
            key: [new[i] for i in value] if key == "ids" and isinstance(value, list) else _renumbered(value, new)
            for key, value in data.items()
            if key != "model" or not isinstance(value, Mapping)
        }
    return [_renumbered(value, new) for value in data] if isinstance(data, list) else data


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", []))
    return [(first, second) for first, second in pairs]


def _byte_level(tokenizer: Mapping[str, Any]) -> bool:
    parts = (tokenizer.get("pre_tokenizer") or {}, tokenizer.get("decoder") or {})
    steps = [step for part in parts for step in (part, *part.get("pretokenizers", ()), *part.get("decoders", ()))]
    return any(step.get("type") == "ByteLevel" for step in steps)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
