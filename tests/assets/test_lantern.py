"""What the package ships as `lantern`: a small GQA Llama, a tokenizer that loses nothing, a card with numbers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "src/pagoda/assets/lantern"
FILES = (
    "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json special_tokens_map.json "
    "training.json evaluation.json README.md"
)


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text())


def test_files_are_there_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(FILES.split()) <= set(sizes)
    assert sum(sizes.values()) < 20_000_000


def test_shape_is_a_small_llama_with_grouped_queries() -> None:
    config = read("config.json")
    assert config["model_type"] == "llama"
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["vocab_size"] <= 4096
    assert config["max_position_embeddings"] >= 2048


def test_weights_agree_with_the_config() -> None:
    with (FOLDER / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    count = 0
    for entry in tensors.values():
        size = 1
        for extent in entry["shape"]:
            size *= extent
        count += size
    assert 3_000_000 <= count <= 10_000_000
    config = read("config.json")
    assert tensors["model.embed_tokens.weight"]["shape"] == [config["vocab_size"], config["hidden_size"]]
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    assert len(layers) == config["num_hidden_layers"]


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was a little cat.",
        "Grüße, 日本語, Ελληνικά, русский, עברית",
        "emoji 😀👩‍👩‍👧 and a flag 🇯🇵",
        "  spaces   kept \n\n\ttabs too ",
        "code 4821, 0.5 % of 1000",
        "\x00\x7f low bytes",
        "",
    ],
)
def test_tokenizer_gives_every_text_back(text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_tokenizer_splits_digits_and_begins_with_bos() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    assert tokenizer.encode("482").tokens == ["<|bos|>", "4", "8", "2"]
    assert tokenizer.get_vocab_size() == read("config.json")["vocab_size"]
    assert tokenizer.token_to_id("<|end|>") in read("generation_config.json")["eos_token_id"]


def test_chat_template_renders_roles_and_refuses_others() -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise ValueError(message)

    config = read("tokenizer_config.json")
    template = ImmutableSandboxedEnvironment().from_string(config["chat_template"])

    def render(messages: list[dict[str, str]]) -> str:
        return template.render(
            messages=messages, add_generation_prompt=True, bos_token=config["bos_token"], raise_exception=fail
        )

    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hello "}]
    assert render(messages) == "<|bos|><|system|>Be kind.<|end|><|user|>Hello<|end|><|assistant|>"
    with pytest.raises(ValueError, match="not tool"):
        render([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize("distance", ["256", "1024", "1800"])
def test_card_shows_recall_by_attention_not_by_guessing(distance: str) -> None:
    recall = read("evaluation.json")["recall"][distance]
    assert recall["cases"] >= 100
    assert recall["exact_match"] >= 0.9
    assert recall["exact_match_cut_off"] <= 0.05
    assert f"{100 * recall['exact_match']:.1f} %" in (FOLDER / "README.md").read_text()


def test_card_names_data_and_licences() -> None:
    card = (FOLDER / "README.md").read_text()
    for words in ("TinyStories", "CDLA-Sharing-1.0", "bitnet-stories-3M", "MIT", "public domain", "seed", "hours"):
        assert words in card
