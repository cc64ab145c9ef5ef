"""Weights in bitstack change their size while the model runs: exact bytes, blocks in order, never worse with more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError, ConfigError, WeightsError
from pagoda.models.load import Loaded, load_model
from pagoda.models.quantize import quantize_model
from pagoda.weights.packed import CodedMatrix
from pagoda.weights.quantization import parse_quantization

from . import fake_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stack")
    plain = fake_model.write(root / "m", hidden_size=64, intermediate_size=128)
    packing = parse_quantization("bitstack(blocks=4, rank=2)")
    quantize_model(load_model(plain, quantization="none"), root / "q", packing)
    return root / "q"


def blocks_of(loaded: Loaded) -> list[int]:
    stacks = [w for w in loaded.model.weights().values() if isinstance(w, CodedMatrix) and w.format.name == "bitstack"]
    return [sum(name.startswith("sign") for name in w.codes) for w in stacks]


def error_of(loaded: Loaded, plain: Loaded) -> float:
    total = 0.0
    for name, weight in loaded.model.weights().items():
        if isinstance(weight, CodedMatrix) and weight.format.name == "bitstack":
            total += float((weight.dense() - plain.model.weights()[name]).square().sum())
    return total


def test_every_size_keeps_its_promise(folder: Path) -> None:
    ledger = Ledger(64 << 20)
    loaded = load_model(folder, ledger=ledger)
    plain = load_model(folder.parent / "m", quantization="none")
    whole, stacks = loaded.model.weight_bytes, loaded.stacks
    assert stacks is not None
    before = {n: w.dense() for n, w in loaded.model.weights().items() if isinstance(w, CodedMatrix)}
    sizes = [stacks.least_bytes + (whole - stacks.least_bytes) * n // 12 for n in range(13)]
    errors = []
    for size in sizes:
        total = stacks.resize(size)
        assert stacks.least_bytes <= total <= size
        assert loaded.model.weight_bytes == ledger.leased_by("weights") == total
        blocks = blocks_of(loaded)
        assert max(blocks) - min(blocks) <= 1
        assert blocks == sorted(blocks, reverse=True)
        errors.append(error_of(loaded, plain))
    assert total == whole
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    stacks.resize(sizes[3])
    stacks.resize(whole)
    for name, dense in before.items():
        assert torch.equal(loaded.model.weights()[name].dense(), dense)
    loaded.close()


def test_a_live_engine_moves_between_two_sizes(folder: Path) -> None:
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    with LLM(str(folder), memory="4GiB") as llm:
        wanted = llm.generate([5, 6, 7], params)[0].token_ids
        whole = llm.stats()["memory"]["accounts"]["weights"]["leased_bytes"]
        least = llm._open().loaded.stacks.least_bytes
        stream = llm.stream([5, 6, 7], params)
        for _ in range(4):
            next(stream)
        assert llm.resize_weights(least) == least
        *_, last = stream
        assert len(last.token_ids) == 24
        assert llm.stats()["memory"]["accounts"]["weights"]["leased_bytes"] == least
        assert llm.resize_weights(whole + 4096) == whole
        assert llm.generate([5, 6, 7], params)[0].token_ids == wanted
        with pytest.raises(BudgetError, match="one block of each matrix takes"):
            llm.resize_weights(least - 1)


def test_refusals_change_nothing(folder: Path, tmp_path: Path) -> None:
    plain = load_model(folder.parent / "m")
    assert plain.stacks is not None
    with pytest.raises(ConfigError, match="pagoda quantize --format bitstack"):
        plain.stacks.resize(1 << 20)
    loaded = load_model(folder)
    assert loaded.stacks is not None
    whole, least = loaded.model.weight_bytes, loaded.stacks.least_bytes
    loaded.stacks.resize(least)
    stat = os.stat(folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(0, 0))
    with pytest.raises(WeightsError, match="changed while tensor"):
        loaded.stacks.resize(whole)
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert loaded.model.weight_bytes == least
    assert loaded.stacks.resize(whole) == whole
