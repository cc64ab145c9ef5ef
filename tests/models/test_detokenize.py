from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from pagoda.models.tokenizer import Tokenizer

from .tokenizer_samples import MADE, REAL, byte_fallback, sample, unconverted

NAMES = [*MADE, *REAL]


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip)
    return [detokenizer.push(i) for i in ids] + [detokenizer.flush()]


def check(tokenizer: Tokenizer, ids: list[int]) -> None:
    for skip in (True, False):
        assert "".join(streamed(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_ids_add_up_to_decode(name: str, data: st.DataObject) -> None:
    tokenizer = sample(name)
    check(tokenizer, data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40)))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_any_text_adds_up_to_decode(name: str, text: str) -> None:
    tokenizer = sample(name)
    check(tokenizer, tokenizer.encode(text))


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "gpt2", "stories260K"])
def test_no_broken_character_is_ever_shown(name: str) -> None:
    tokenizer = sample(name)
    text = "the 😀👍🏽 你好 café — ok\n"
    pieces = streamed(tokenizer, tokenizer.encode(text))
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text
    if name in ("byte_level", "gpt2"):  # a whole character is shown at once
        assert len([p for p in pieces if p]) >= 10


def test_byte_level_shows_a_character_with_its_last_byte() -> None:
    tokenizer = sample("byte_level")
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    *early, last, rest = streamed(tokenizer, ids)
    assert (early, last, rest) == ([""] * (len(ids) - 1), "😀", "")


def test_an_unfinished_character_is_flushed_as_replacement() -> None:
    tokenizer = sample("byte_level")
    ids = tokenizer.encode("a😀")[:-1]
    pieces = streamed(tokenizer, ids)
    assert pieces[-1] == "\ufffd"
    assert "".join(pieces) == tokenizer.decode(ids)


def test_special_tokens_are_skipped_or_shown() -> None:
    tokenizer = sample("byte_level")
    ids = tokenizer.encode("a<|end|>b")
    assert "".join(streamed(tokenizer, ids)) == "ab"
    assert "".join(streamed(tokenizer, ids, skip=False)) == "a<|end|>b"


@pytest.mark.parametrize("kind", ["mistral_v1", "mistral_v3"])
def test_real_sentencepiece(tmp_path: Path, kind: str) -> None:
    tokenizer = Tokenizer.from_dir(unconverted(tmp_path, kind))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40), st.text(max_size=40))
    def both(ids: list[int], text: str) -> None:
        check(tokenizer, ids)
        check(tokenizer, tokenizer.encode(text))

    both()


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "word_piece"])
def test_cost_does_not_grow_with_the_stream(name: str) -> None:
    tokenizer = sample(name)
    ids = tokenizer.encode("the cat sat, " * 700)
    detokenizer = tokenizer.detokenizer()
    quarter = len(ids) // 4
    costs = []
    for start in (0, 3 * quarter):
        began = time.process_time()
        for i in ids[start : start + quarter]:
            detokenizer.push(i)
        costs.append(time.process_time() - began)
    assert costs[1] < 3 * costs[0] + 0.05


def test_strip_at_the_end_waits_for_the_end() -> None:
    backend = byte_fallback()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 2)])
    tokenizer = Tokenizer(backend, {})
    for text in ("a b", "a b ", "a  b   ", "  a  "):
        check(tokenizer, tokenizer.encode(text))


def test_token_bytes_spell_the_text() -> None:
    for name in ("byte_level", "byte_fallback", "gpt2", "stories260K"):
        tokenizer = sample(name)
        text = " the 😀 é,"
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().strip() == text.strip()
    assert sample("byte_level").token_bytes(10**6) == b""
