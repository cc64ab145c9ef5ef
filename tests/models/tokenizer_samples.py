"""Tokenizers for tests: small ones made on the spot, and real ones from ../shared/data where that folder is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from pagoda.models.tokenizer import Tokenizer

DATA = Path(os.environ.get("PAGODA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TEXTS = ["the cat sat on the mat", "Hello, wörld! 你好 😀", "numbers 12345 and  double  spaces\n\ttabs"] * 4


def data(relative: str) -> Path:
    """A file of the shared data; the test is skipped where that is not there."""
    path = DATA / relative
    if not path.exists():
        pytest.skip(f"needs shared data: {relative}")
    return path


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    backend.add_tokens([AddedToken("plain added é")])
    return backend


def byte_fallback() -> Backend:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for piece in ["▁", "t", "h", "e", "th", "the", "▁the", "é", "a", "b", "c", "▁a", "▁▁", ",", "你"]:
        vocab[piece] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("▁", "▁")]
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def metaspace(scheme: str = "always") -> Backend:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("▁the", -1.5), ("▁▁", -4.0)] + [(c, -3.0) for c in "thecatsonmé你"]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def word_piece() -> Backend:
    vocab = ["[UNK]", "the", "cat", "##s", "sat", ",", ".", "'", "do", "##n", "n", "t", "a", "##b", "##c", "é"]
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return backend


def no_decoder() -> Backend:
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(["?", "the", "cat", "sat"])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


MADE = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "metaspace_never": lambda: metaspace("never"),
    "word_piece": word_piece,
    "no_decoder": no_decoder,
}


def gpt2() -> Backend:
    """The real GPT-2 vocabulary, put together without transformers."""
    vocab = json.loads(data("tokenizers/gpt2_vocab.json").read_text(encoding="utf-8"))
    lines = data("tokenizers/gpt2_merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    backend = Backend(models.BPE(vocab, merges))  # type: ignore[arg-type]
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>"])
    return backend


REAL = {"gpt2": gpt2, "stories260K": lambda: Backend.from_file(str(data("models/stories260K/tokenizer.json")))}

_kept: dict[str, Tokenizer] = {}


def sample(name: str) -> Tokenizer:
    """A tokenizer by name, built once a run."""
    if name not in _kept:
        _kept[name] = Tokenizer((MADE | REAL)[name](), {})
    return _kept[name]


def unconverted(folder: Path, kind: str) -> Path:
    """A model folder that holds a real tokenizer in its older form (no tokenizer.json)."""
    files, model_type, settings = {
        "gpt2": ({"gpt2_vocab.json": "vocab.json", "gpt2_merges.txt": "merges.txt"}, "gpt2", {}),
        "mistral_v1": ({"mistral_v1_sentencepiece.model": "tokenizer.model"}, "mistral", {"add_bos_token": True}),
        "mistral_v3": ({"mistral_v3_sentencepiece.model": "tokenizer.model"}, "llama", {"add_bos_token": True}),
    }[kind]
    for source, name in files.items():
        shutil.copyfile(data(f"tokenizers/{source}"), folder / name)
    if settings:
        settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder
