"""Pruned folders: transformers' numbers of the same cut weights, the full model's on tokens that stay, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pagoda.cli.main import app
from pagoda.core.errors import ConfigError, ModelError
from pagoda.models.config_json import read_config
from pagoda.models.load import Loaded, load_model
from pagoda.models.prune import empty_model, vocabulary_slices, width_slices, write_pruned
from pagoda.models.prune_vocab import cut_config, cut_tokenizer, kept_tokens
from pagoda.models.quantize import run
from pagoda.weights.reader import Checkpoint
from pagoda.weights.source import open_source

from . import fake_model

TOKENS = [5, 99, 42, 7, 260, 33, 31]
TEXT = "Once upon a time there was a little dog."


def pruned(folder: Path, out: Path, share: float) -> Path:
    config = read_config(folder)
    source = open_source(Checkpoint.open(folder), None)
    width, slices = width_slices(folder, empty_model(folder, config), source, share)
    write_pruned(folder, out, source, slices, {**config, "intermediate_size": width}, {})
    return out


def logits(loaded: Loaded, tokens: list[int]) -> torch.Tensor:
    return run(loaded.model._ready(), [tokens])[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_narrower_model_is_transformers_with_the_same_cut_weights(tmp_path: Path, family: str) -> None:
    """phi3 keeps gate and up in one tensor."""
    from transformers import AutoModelForCausalLM

    changes: dict[str, Any] = {"model_type": family, "num_key_value_heads": 4, "pad_token_id": 0}
    folder = fake_model.write(tmp_path / "m", **changes)
    out = pruned(folder, tmp_path / "narrow", 0.5)
    loaded = load_model(out)
    assert loaded.model.spec.blocks[0].mlp.inner == 24  # type: ignore[union-attr]
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor([TOKENS])).logits[0]
    assert torch.allclose(logits(loaded, TOKENS), wanted, atol=1e-5)


def test_those_stay_whose_gate_and_up_hold_the_largest_weights(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", num_hidden_layers=1)
    tensors = fake_model.weights({**fake_model.CONFIG, "num_hidden_layers": 1})
    gate, up, down = (tensors[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    gate[[3, 40], 5], up[[17, 40], 9] = -9.0, 8.0  # 40 by both, 3 and 17 by one
    down[:, 30] = 100.0  # MAW does not look at it
    fake_model.save(folder, tensors)
    out = pruned(folder, tmp_path / "narrow", 3 / 48)
    cut = Checkpoint.open(out)
    for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
        name = f"model.layers.0.mlp.{name}_proj.weight"
        assert torch.equal(cut.read(name), tensors[name].index_select(dim, torch.tensor([3, 17, 40])))


def test_a_smaller_vocabulary_says_the_same_and_still_reads_everything(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    result = CliRunner().invoke(
        app, ["prune", "lantern", str(tmp_path / "small"), "--vocab", str(tmp_path / "t.txt"), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    full, small = load_model("lantern"), load_model(tmp_path / "small")
    assert found["tokens"] == small.shape.vocab_size < full.shape.vocab_size
    ours, theirs = small.tokenizer.encode(TEXT), full.tokenizer.encode(TEXT)
    words = json.loads((full.path / "tokenizer.json").read_text())
    kept = kept_tokens("lantern", words, theirs)
    assert [kept[token] for token in ours] == theirs
    assert torch.allclose(logits(small, ours), logits(full, theirs)[:, kept], atol=1e-4)
    assert {kept[token] for token in small.eos_ids} == set(full.eos_ids)
    other = "Quixotic zebras émigré 東京"
    assert small.tokenizer.decode(small.tokenizer.encode(other)) == full.tokenizer.decode(full.tokenizer.encode(other))
    assert len(small.tokenizer.encode(other)) >= len(full.tokenizer.encode(other))


def test_ids_in_configs_are_the_new_ones() -> None:
    assert cut_config({"eos_token_id": [2, 6], "pad_token_id": 9, "vocab_size": 50}, [0, 2, 6]) == {
        "eos_token_id": [1, 2], "pad_token_id": None, "vocab_size": 3,
    }  # fmt: skip
    added = {"added_tokens": [{"id": 6, "content": "<s>"}], "post_processor": {"special_tokens": {"<s>": {"ids": [6]}}}}
    words = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 2, "ab": 3, "<s>": 6}, "merges": ["a b"]}, **added}
    cut = cut_tokenizer(words, [0, 2, 6])
    assert cut["model"]["vocab"] == {"a": 0, "b": 1, "<s>": 2}
    assert cut["model"]["merges"] == []
    assert (cut["added_tokens"][0]["id"], cut["post_processor"]["special_tokens"]["<s>"]["ids"]) == (2, [2])


def test_refusals(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    with pytest.raises(ConfigError, match="width 1 keeps 48 of 48 neurons; give a share between 0 and 1"):
        pruned(folder, tmp_path / "x", 1.0)
    with pytest.raises(ModelError, match="is not empty"):
        pruned(folder, folder, 0.5)
    plain = fake_model.write(tmp_path / "gpt2", model_type="gpt2", n_embd=32, n_layer=1, n_head=4, vocab_size=384)
    with pytest.raises(ModelError, match="width pruning is for dense gated layers"):
        pruned(plain, tmp_path / "y", 0.5)
    with pytest.raises(ModelError, match="not Unigram"):
        kept_tokens("m", {"model": {"type": "Unigram"}}, [])
    with pytest.raises(ModelError, match="does not know every byte"):
        kept_tokens("m", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, [])
    result = CliRunner().invoke(app, ["prune", "lantern", str(tmp_path / "z")])
    assert result.exit_code == 2


def test_slices_of_a_tied_and_of_an_untied_vocabulary(tmp_path: Path) -> None:
    for tied, wanted in ((True, 1), (False, 2)):
        folder = fake_model.write(tmp_path / f"m{tied}", tie_word_embeddings=tied)
        config, source = read_config(folder), open_source(Checkpoint.open(folder), None)
        assert len(vocabulary_slices(empty_model(folder, config), source, [1, 2])) == wanted
