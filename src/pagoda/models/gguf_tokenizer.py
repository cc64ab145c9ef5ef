"""The tokenizer of a GGUF file: byte-level BPE (``gpt2``) or SentencePiece BPE (``llama``), from its metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pagoda.core.errors import UnsupportedModelError, WeightsError, choices
from pagoda.weights.gguf_header import GGUFHeader

from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

CONTROL, USER_DEFINED = 3, 4  # token types
# How text is cut before BPE, by tokenizer.ggml.pre.
_NUMBERS = {"llama-bpe": r"\p{N}{1,3}", "llama3": r"\p{N}{1,3}", "qwen2": r"\p{N}"}
_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PLAIN = ("default", "gpt-2")
_WHOLE_WORDS = ("llama-bpe", "llama3")  # a word that is a token is that token, whatever the merges would make of it


def read_tokenizer(header: GGUFHeader) -> Tokenizer:
    """Raises UnsupportedModelError for a kind that is not read, WeightsError for metadata in disorder."""
    meta = {k.removeprefix("tokenizer.ggml."): v for k, v in header.metadata.items() if k.startswith("tokenizer.ggml.")}
    kind, tokens = meta.get("model"), meta.get("tokens", [])
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModelError(f"{header.file}: {choices('tokenizer of a GGUF file', kind, ('gpt2', 'llama'))}")
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise WeightsError(f"{header.file}: tokenizer.ggml.tokens is no list of texts; damaged")
    if len(set(tokens)) != len(tokens) or len(meta.get("token_type", tokens)) != len(tokens):
        raise WeightsError(f"{header.file}: tokenizer.ggml.tokens and token_type do not fit together; damaged")
    try:
        backend = _byte_level(header, meta) if kind == "gpt2" else _sentencepiece(meta)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{header.file}: its tokenizer cannot be read ({error!r})") from error
    _add_special(backend, meta)
    _add_ends(backend, meta, bos_by_default=kind == "llama")
    named = {f"{n}_token": tokens[i] for n in ("bos", "eos") if (i := _id(meta, n)) is not None}
    return Tokenizer(backend, named)


def _byte_level(header: GGUFHeader, meta: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = meta.get("pre", "default")
    if pre not in _NUMBERS and pre not in _PLAIN:
        raise UnsupportedModelError(f"{header.file}: {choices('tokenizer.ggml.pre', pre, (*_NUMBERS, *_PLAIN))}")
    merges = [tuple(line.split(" ")) for line in meta["merges"]]
    vocab = {token: i for i, token in enumerate(meta["tokens"])}
    backend = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre in _WHOLE_WORDS))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in _PLAIN)
    if pre in _NUMBERS:
        cut = pre_tokenizers.Split(Regex(_CUT.format(numbers=_NUMBERS[pre])), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, level])
    else:
        backend.pre_tokenizer = level
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(meta: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {token: i for i, token in enumerate(meta["tokens"])}
    unknown = meta["tokens"][meta.get("unknown_token_id", 0)]
    bpe = models.BPE(vocab, _merges(vocab, meta["scores"]), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(bpe)
    before = [normalizers.Prepend("▁")] if meta.get("add_space_prefix", True) else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if before else [])])
    return backend


def _merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes another, the best score first: the order in which SentencePiece merges."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, i in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[i], vocab[left], vocab[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _add_special(backend: tokenizers.Tokenizer, meta: dict[str, Any]) -> None:
    from tokenizers import AddedToken

    kinds = meta.get("token_type", [])
    backend.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(meta["tokens"], kinds, strict=False)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )


def _add_ends(backend: tokenizers.Tokenizer, meta: dict[str, Any], *, bos_by_default: bool) -> None:
    from tokenizers import processors

    found = {name: meta["tokens"][i] for name in ("bos", "eos") if (i := _id(meta, name)) is not None}
    bos = found.get("bos") if meta.get("add_bos_token", bos_by_default) else None
    eos = found.get("eos") if meta.get("add_eos_token", False) else None
    if bos is None and eos is None:
        return
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    special = [(token, backend.token_to_id(token)) for token in (bos, eos) if token]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def _id(meta: dict[str, Any], name: str) -> int | None:
    value = meta.get(f"{name}_token_id")
    return value if isinstance(value, int) and 0 <= value < len(meta["tokens"]) else None
