"""Rounding tensor by tensor writes what rounding the whole model writes, in little memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError, ConfigError, ModelError, WeightsError
from pagoda.models import families
from pagoda.models.load import load_model
from pagoda.models.quantize import quantize_model
from pagoda.models.quantize_tensors import round_checkpoint
from pagoda.weights import source as source_module
from pagoda.weights.quantization import parse_quantization
from pagoda.weights.writer import TensorWriter

from ..sampling.test_scratch import peak_bytes
from . import fake_model

SIZES = {"hidden_size": 64, "intermediate_size": 160}


@pytest.mark.parametrize("text", ["int4(group=32)", "int8(embed='none')", "bf16", "nf4", "int3", "ternary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_same_tensors_as_of_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(source_module, "UNIT_BYTES", 4096)  # large tensors come some rows at a time
    folder = fake_model.write(tmp_path / "m", dtype=dtype, num_shards=2, **SIZES)
    _twins(folder, tmp_path, text)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "gpt_neox", "deepseek_v3"])
def test_experts_and_tensors_that_are_rearranged(tmp_path: Path, family: str) -> None:
    if family not in families.names():
        pytest.skip(f"no family {family}")
    _twins(fake_model.write(tmp_path / "m", **families.family(family).tiny()), tmp_path, "int8")


@pytest.mark.parametrize("text", ["int4(group=32)", "int4(symmetric=True)", "w8a8"])
def test_codes_by_hqq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Embedding and head are rounded, as by the whole model."""
    monkeypatch.setattr(source_module, "UNIT_BYTES", 4096)
    _twins(fake_model.write(tmp_path / "m", **SIZES), tmp_path, text, "hqq")
    with pytest.raises(ConfigError, match="format of this method 'nf4'; accepted: .*rtn takes all"):
        round_checkpoint(tmp_path / "m", tmp_path / "other", parse_quantization("nf4"), method="hqq")
    assert not (tmp_path / "other").exists()


def _twins(folder: Path, work: Path, text: str, method: str = "rtn") -> None:
    packing, told = parse_quantization(text), list[tuple[int, int]]()
    whole = quantize_model(load_model(folder, quantization="none"), work / "whole", packing, method=method)
    report = round_checkpoint(folder, work / "one", packing, method=method, progress=lambda *done: told.append(done))
    wanted, found = (load_file(work / name / "model.safetensors") for name in ("whole", "one"))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert tensor.dtype == found[name].dtype
        assert torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8)), name
    configs = [json.loads((work / name / "config.json").read_text()) for name in ("whole", "one")]
    assert configs[0] == configs[1]
    assert (report.bytes_before, report.bytes_after) == (whole.bytes_before, whole.bytes_after)
    for name, chosen in whole.params.items():
        ours = report.params[name]
        assert str(ours) == str(chosen)
        assert ours.relative_error == pytest.approx(chosen.relative_error, rel=1e-4)
    assert told[-1][0] == told[-1][1]
    assert load_model(work / "one").model.weight_bytes == report.bytes_after


def test_a_model_that_is_larger_than_its_budget(tmp_path: Path) -> None:
    """Layers cost nothing: the lease and what is allocated are those of one parameter."""
    leased, allocated = [], []
    for layers in (2, 16):
        folder = fake_model.write(tmp_path / str(layers), num_hidden_layers=layers, vocab_size=384, **SIZES)
        ledger, out = Ledger(4 << 20), tmp_path / f"out{layers}"
        allocated.append(
            peak_bytes(lambda: round_checkpoint(folder, out, parse_quantization("int4(embed='none')"), ledger=ledger))  # noqa: B023
        )
        leased.append(ledger.report().peak_bytes)
        assert ledger.leased_bytes == 0
        assert load_model(out).shape.num_layers == layers
    model = load_model(tmp_path / "16", quantization="none").model.weight_bytes
    assert leased[1] < model // 2  # the ring is an eighth of what is read, in whole pages, while that is little
    assert allocated[1] < min(model // 3, allocated[0] + (64 << 10))
    ledger = Ledger(1 << 18)
    ledger.gather()  # as the command's, which knows what the process holds by then
    with pytest.raises(BudgetError, match="one parameter after another"):
        round_checkpoint(tmp_path / "16", tmp_path / "x", parse_quantization("int4"), ledger=ledger)
    assert not (tmp_path / "x").exists()


def test_a_tied_head(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", tie_word_embeddings=True)
    tensors = fake_model.weights(fake_model.CONFIG | {"tie_word_embeddings": True})
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    fake_model.save(folder, tensors)
    round_checkpoint(folder, tmp_path / "same", parse_quantization("int8"))
    assert "pagoda.embed.weight:codes" in load_file(tmp_path / "same" / "model.safetensors")
    tensors["lm_head.weight"][300, 3] += 1
    fake_model.save(folder, tensors)
    with pytest.raises(ModelError, match=r"'lm_head.weight' is not the embedding .* set tie_word_embeddings to false"):
        round_checkpoint(folder, tmp_path / "other", parse_quantization("int8"))


def test_what_cannot_be_rounded_is_refused_and_leaves_no_weights(tmp_path: Path) -> None:
    folder, format = fake_model.write(tmp_path / "m"), parse_quantization("int8")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="a GGUF file is packed already"):
        round_checkpoint(tmp_path / "a.gguf", tmp_path / "out", format)
    with pytest.raises(ModelError, match="is not empty"):
        round_checkpoint(folder, tmp_path, format)
    tensors: dict[str, Any] = fake_model.weights(fake_model.CONFIG)
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="v_proj"):
        round_checkpoint(folder, tmp_path / "out", format)
    assert not list((tmp_path / "out").glob("*.safetensors*"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bloom"}))
    with pytest.raises(ModelError, match="bloom runs through transformers"):
        round_checkpoint(folder, tmp_path / "other", format)


def test_a_writer_takes_tensors_in_any_order_and_all_of_them(tmp_path: Path) -> None:
    entries = [("a", "F32", (2, 3)), ("b", "U8", (5,))]
    a, b = torch.randn(2, 3), torch.arange(5, dtype=torch.uint8)
    with TensorWriter(tmp_path / "x.safetensors", entries) as out:
        out.put("b", b)
        out.put("a", a)
        assert not (tmp_path / "x.safetensors").exists()
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["a"], a)
    assert torch.equal(found["b"], b)
    with pytest.raises(AssertionError, match=r"not written: \['a'\]"), TensorWriter(tmp_path / "y", entries) as out:
        out.put("b", b)
    with pytest.raises(WeightsError, match="cannot be written"), TensorWriter(tmp_path / "no" / "y", entries):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
