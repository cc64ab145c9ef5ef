from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.core.errors import ModelError, RequestError
from pagoda.models.chat import ChatTemplate, read_templates
from pagoda.models.resolve import resolve
from pagoda.models.tokenizer import Tokenizer

from .tokenizer_samples import byte_level, data, sample, unconverted

TEXTS = ["", " ", "Once upon a time", "  two  spaces ", "你好, 😀!\n\nÀ la carte", "<s>in</s> text", "a\tb\r\n"]


def saved(folder: Path, backend: object, **settings_: object) -> Path:
    backend.save(str(folder / "tokenizer.json"))  # type: ignore[attr-defined]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_), encoding="utf-8")
    return folder


def same_as_transformers(folder: Path) -> Tokenizer:
    transformers = pytest.importorskip("transformers")
    ours, theirs = Tokenizer.from_dir(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in TEXTS:
        for special in (True, False):
            ids = ours.encode(text, special)
            assert ids == theirs.encode(text, add_special_tokens=special), text
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert ours.vocab_size == len(theirs)
    for i in range(min(400, len(theirs))):
        assert ours.decode([i]) == theirs.decode([i], skip_special_tokens=True)
    return ours


def test_stories() -> None:
    folder = data("models/stories260K")
    tokenizer = same_as_transformers(folder)
    reference = json.loads((folder / "reference.json").read_text())
    for case in reference["prompts"]:
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


def test_lantern() -> None:
    folder = resolve("lantern")
    tokenizer = same_as_transformers(folder)
    templates = read_templates(folder)
    assert templates
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "x"},
    ]
    text = ChatTemplate.of(templates, tokenizer).render(messages)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(folder))
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(text, False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", ["gpt2", "mistral_v1", "mistral_v3"])
def test_older_forms_are_converted(tmp_path: Path, kind: str) -> None:
    same_as_transformers(unconverted(tmp_path, kind))


@pytest.mark.parametrize(
    "settings_",
    [
        {"bos_token": "<|end|>", "add_bos_token": True},
        {"eos_token": "<|end|>", "add_eos_token": True},
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_bos_token": False},
        {"eos_token": "plain added é", "pad_token": "the"},
        {"image_token": "<image>", "extra_special_tokens": {"audio_token": "<audio>"}},
        {"additional_special_tokens": ["<tool>", "<|end|>"], "eos_token": "<|end|>"},
        {"added_tokens_decoder": {"400": {"content": "<x>", "special": True}, "90": {"content": "yy"}}},
    ],
)
def test_settings_are_followed_like_transformers(tmp_path: Path, settings_: dict[str, object]) -> None:
    folder = saved(tmp_path, byte_level(), tokenizer_class="PreTrainedTokenizerFast", **settings_)
    same_as_transformers(folder)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_byte_level_round_trip(text: str) -> None:
    tokenizer = sample("byte_level")
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_config_names_what_the_tokenizer_does_not(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level())
    end = sample("byte_level").token_id("<|end|>")
    tokenizer = Tokenizer.from_dir(folder, {"bos_token_id": end, "eos_token_id": [end, 3]})
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (end, end, None)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer.from_dir(saved(tmp_path, backend))
    text = "the cat sat on the mat again"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bad_input_is_named(tmp_path: Path) -> None:
    tokenizer = sample("byte_level")
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(RequestError, match="got int"):
        tokenizer.encode(5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="-2 is negative"):
        tokenizer.decode([1, -2])
    with pytest.raises(ModelError, match="no tokenizer; expected"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as a tokenizer"):
        Tokenizer.from_dir(tmp_path)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object"):
        Tokenizer.from_dir(tmp_path)


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    saved(tmp_path, byte_level())
    code = (
        "import sys; from pagoda.models.tokenizer import Tokenizer; t = Tokenizer.from_dir(sys.argv[1]);"
        "d = t.detokenizer(); assert ''.join(map(d.push, t.encode('hello'))) + d.flush() == 'hello';"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
