"""Text to token ids and back, straight on the ``tokenizers`` library.

transformers would do the same work, but importing its AutoTokenizer takes 2.5 s and 240 MB of a process that has to
show its first token within 5 s; ``tokenizers`` takes 0.03 s. It is asked (``_transformers.py``) only when a folder has
no ``tokenizer.json`` to read, which for a SentencePiece model or a vocab/merges pair means a conversion.

The rules of transformers 5 are followed where files disagree: ``tokenizer.json`` is the tokenizer, its post-processor
decides about BOS and EOS (``add_bos_token``/``add_eos_token`` of tokenizer_config.json count only where a tokenizer has
to be converted), its padding and truncation are switched off; added and special tokens named elsewhere are added to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagoda.core.errors import ModelError, RequestError

if TYPE_CHECKING:
    import tokenizers

    from .detokenize import Detokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
_CHARS_PER_TOKEN = 16
_NEEDS_CONVERSION = ("tokenizer.model", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
                     "vocab.txt", "tiktoken.model")  # fmt: skip


class Tokenizer:
    """One model's tokenizer. Reading methods may be called from several threads; nothing changes after construction."""

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        """``special_tokens`` maps ``bos_token``, ``eos_token``, … to their text (what chat templates see)."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def from_dir(cls, folder: Path | str, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Reads a model folder; ``config`` (its config.json) names bos/eos ids where the tokenizer's files do not.

        Raises ModelError when there is no tokenizer, or when it cannot be read.
        """
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            return _converted(cls, folder)
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exception for anything wrong in the file
            raise ModelError(f"{folder / 'tokenizer.json'}: cannot be read as a tokenizer ({_line(error)})") from error
        settings = read_settings(folder)
        try:
            _add_tokens(backend, settings)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{folder / 'tokenizer_config.json'}: its added tokens cannot be read ({error!r})"
            ) from error
        return cls(backend, _named_tokens(backend, settings, config or {}))

    # -- text to ids

    def encode(self, text: str, add_special_tokens: bool = True, *, context: int | None = None) -> list[int]:
        """Token ids of ``text``; special tokens written out in it count as themselves, as in transformers.

        Raises RequestError for a text whose beginning alone is longer than ``context`` tokens: tokenizing takes some
        200 bytes a token, so what is far too long is not tokenized whole.
        """
        if context is not None and len(text) > _CHARS_PER_TOKEN * context:
            num_tokens = len(self.encode_many([text[: _CHARS_PER_TOKEN * context]], add_special_tokens)[0])
            if num_tokens > context:
                raise RequestError(
                    f"the prompt has more than {num_tokens} tokens and leaves no room for an answer: the context is "
                    f"{context}; shorten the prompt, or raise max_model_len where the model can do more"
                )
        return self.encode_many([text], add_special_tokens)[0]

    def encode_many(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of several texts, on several threads for long lists."""
        for text in texts:
            _check_text(text)
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)]

    # -- ids to text

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; ids that the tokenizer does not know give nothing, as in transformers."""
        ids = list(ids)
        if any(i < 0 for i in ids):
            raise RequestError(f"token id {min(ids)} is negative; accepted: 0 to {self.vocab_size - 1}")
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, skip_special_tokens: bool = True, *, inside: bool = False) -> Detokenizer:
        """A fresh incremental decoder for one stream of ids; ``inside`` a text its first space is kept."""
        from .detokenize import Detokenizer

        return Detokenizer(self, skip_special_tokens, inside=inside)

    @cached_property
    def decoder_steps(self) -> list[dict[str, Any]] | None:
        """What ``decode`` does, step by step (see ``detokenize``)."""
        from .detokenize import read_steps

        return read_steps(self.backend)

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it (``Ġthe``, ``▁the``, ``<0x0A>``), or None for an unknown id."""
        return self.backend.id_to_token(token_id) if token_id >= 0 else None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token stands for in the middle of a text; a special token gives its own name."""
        from .detokenize import token_bytes

        return token_bytes(self, token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether ``decode`` leaves this id out when it skips special tokens."""
        return token_id in self.special_ids

    # -- the vocabulary

    def token_id(self, token: str) -> int | None:
        """The id of a token spelled as in the vocabulary, or None."""
        return self.backend.token_to_id(token)

    @cached_property
    def vocab_size(self) -> int:
        """Tokens known, added ones included. A model's logits may be padded to more."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._named_id("pad_token")

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json; with special_tokens_map.json where it does not list its added tokens (older files)."""
    settings = read_json(folder / "tokenizer_config.json")
    return settings if "added_tokens_decoder" in settings else settings | read_json(folder / "special_tokens_map.json")


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; {} if there is no such file. Raises ModelError if it is damaged."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: not valid JSON ({_line(error)}); fetch the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: must hold a JSON object, holds a {type(value).__name__}")
    return value


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise RequestError(f"a prompt must be text or a list of token ids, got {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            bad = text[error.start]
            raise RequestError(f"the prompt is not valid Unicode: lone surrogate {bad!r} at {error.start}") from error


def _converted(cls: type[Tokenizer], folder: Path) -> Tokenizer:
    if not any((folder / name).is_file() for name in _NEEDS_CONVERSION):
        raise ModelError(
            f"{folder}: no tokenizer; expected tokenizer.json, tokenizer.model, or vocab.json + merges.txt"
        )
    from ._transformers import convert_tokenizer

    return cls(*convert_tokenizer(folder))


def _content(value: object) -> str | None:
    """A special token is written as text or as a dict with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _add_tokens(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """Adds tokens that the settings name and tokenizer.json lacks: in the order of their ids, as transformers does."""
    from tokenizers import AddedToken

    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    special = _special_texts(settings)
    decoder = settings.get("added_tokens_decoder") or {}
    wanted = [_added_token(spec) for _, spec in sorted(decoder.items(), key=lambda item: int(item[0]))]
    wanted = [token for token in wanted if repr(known.get(token.content)) != repr(token)]
    listed = known.keys() | {token.content for token in wanted}
    wanted += [AddedToken(text, special=True, normalized=False) for text in special if text not in listed]
    if wanted:
        backend.add_tokens(wanted)
    # A token that the settings call special is skipped when decoding, even where tokenizer.json calls it ordinary.
    plain = {token.content for token in backend.get_added_tokens_decoder().values() if not token.special}
    promoted = [AddedToken(text, special=True, normalized=False) for text in special if text in plain]
    if promoted:
        backend.add_special_tokens(promoted)


def _added_token(spec: Mapping[str, Any]) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(spec["content"], **{name: bool(spec[name]) for name in names if name in spec})


def _special_texts(settings: Mapping[str, Any]) -> list[str]:
    """Texts of every token that the settings call special, each once, the named ones (``…_token``) first."""
    values: list[object] = [settings.get(name) for name in _NAMED]
    for name in _LISTS:
        extra = settings.get(name) or []
        values += list(extra.values()) if isinstance(extra, dict) else list(extra)
    values += [value for name, value in settings.items() if name.endswith("_token") and isinstance(value, str)]
    return list(dict.fromkeys(text for text in map(_content, values) if text is not None))


def _named_tokens(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, str]:
    named = {name: text for name in _NAMED if (text := _content(settings.get(name))) is not None}
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = config.get(f"{name}_id")
        if isinstance(token_id, list):
            token_id = token_id[0] if token_id else None
        if name not in named and isinstance(token_id, int) and token_id >= 0:
            text = backend.id_to_token(token_id)
            if text is not None:
                named[name] = text
    return named


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
