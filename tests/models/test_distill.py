"""Codes and scales trained on the whole model: less lost, the same twice, what is stored is what was judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda.budget.ledger import Ledger
from pagoda.cli.main import main
from pagoda.core.errors import BudgetError, ConfigError
from pagoda.models import distill as module
from pagoda.models import families
from pagoda.models.decoder import Decoder
from pagoda.models.distill import distill, training_bytes
from pagoda.models.load import Loaded, load_model
from pagoda.models.quantize import kl, quantize_model, run
from pagoda.weights.methods import METHODS
from pagoda.weights.packed import CodedMatrix
from pagoda.weights.quantization import Quantization, parse_format, parse_quantization
from pagoda.weights.trained import TrainedMatrix

from . import fake_model
from .test_activation_bytes import LiveBytes

TEXTS = [torch.randint(8, 90, (24,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(16)]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASSES", 2)
    monkeypatch.setattr(module, "BATCH_TOKENS", 48)
    monkeypatch.setattr(module, "STRETCH_RATE", 0.002)
    monkeypatch.setattr(module, "HELD_BACK", 100)  # so little text is taught and judged as a whole


def written(folder: Path, **changes: Any) -> Path:
    """A small model that is sure of something: weights of the size that trained ones have."""
    fake_model.write(folder, **changes)
    tensors = fake_model.weights(fake_model.CONFIG | changes)
    fake_model.save(
        folder, {n: t * 20 * 1.5 / t.shape[-1] ** 0.5 if t.dim() > 1 else t * 0 + 1 for n, t in tensors.items()}
    )
    return folder


def lost(loaded: Loaded, folder: Path) -> float:
    exact, other = loaded.model._ready(), load_model(folder)
    try:
        return kl(run(exact, TEXTS), run(other.model._ready(), TEXTS))
    finally:
        other.close()


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("int4(group=32)", {}),  # 48 columns: the second group is cut
        ("int4(group=32, symmetric=True)", {"tie_word_embeddings": True}),
        ("int5(group=48, embed='none')", {}),
        ("w8a8", {}),
        ("int4(group=32)", {"mixtral": True}),
    ],
)
def test_less_is_lost_in_the_same_bytes(tmp_path: Path, text: str, changes: dict[str, Any]) -> None:
    if changes.pop("mixtral", False):
        changes = families.family("mixtral").tiny()
    loaded, quantization = load_model(written(tmp_path / "m", **changes), quantization="none"), parse_quantization(text)
    by_gptq = quantize_model(loaded, tmp_path / "gptq", quantization, method="gptq", calibration=TEXTS)
    codes = distill(loaded, quantization, TEXTS)
    report = quantize_model(loaded, tmp_path / "distill", quantization, ready=codes, called="distill")
    assert report.bytes_after == by_gptq.bytes_after
    assert json.loads((tmp_path / "distill/config.json").read_text())["quantization_config"]["method"] == "distill"
    assert lost(loaded, tmp_path / "distill") < 0.98 * lost(loaded, tmp_path / "gptq")


def test_the_same_text_and_seed_give_the_same_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BACK", 8)
    loaded = load_model(written(tmp_path / "m"), quantization="none")
    quantization, done = parse_quantization("int4(group=32)"), list[tuple[int, int]]()
    first, second, other = (
        distill(loaded, quantization, TEXTS, lambda *now: done.append(now), seed=seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(t, second[name][kind]) for name, codes in first.items() for kind, t in codes.items())
    assert first is not second
    assert any(not torch.equal(t, other[name][kind]) for name, codes in first.items() for kind, t in codes.items())
    assert done[len(done) // 3 - 1] == (2 * 14 * 24, 2 * 14 * 24), "two passes over 14 of 16 texts"


@pytest.mark.parametrize("text", ["int4(group=32)", "int5(group=48)", "int4(group=64, symmetric=True)", "int8", "w4a8"])
def test_what_is_judged_is_what_is_stored(text: str) -> None:
    weight = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    format = parse_format(text)
    start = METHODS["rtn"](weight, format, None)
    matrix = TrainedMatrix(format, start, 100, torch.float32)
    assert torch.equal(matrix.value.detach(), format.dequantize(start, 100))
    with torch.no_grad():
        matrix.places += torch.linspace(-2, 2, matrix.places.numel()).view_as(matrix.places)
        matrix.stretch += torch.linspace(-0.1, 0.1, matrix.stretch.numel()).view_as(matrix.stretch)
    matrix.refresh()
    moved = matrix.codes()
    assert torch.equal(matrix.value.detach(), format.dequantize(moved, 100))
    assert {name: t.dtype for name, t in moved.items()} == {name: t.dtype for name, t in start.items()}
    assert not torch.equal(moved["scale"], start["scale"])


def test_a_worse_end_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps that ruin the model, what comes out is the start."""
    monkeypatch.setattr(module, "PLACE_RATE", 50.0)
    monkeypatch.setattr(module, "STRETCH_RATE", 5.0)
    loaded, quantization = load_model(written(tmp_path / "m"), quantization="none"), parse_quantization("int8")
    start = module._start(loaded.model, quantization, TEXTS)
    found = distill(loaded, quantization, TEXTS, start=start)
    assert all(torch.equal(t, found[name][kind]) for name, codes in start.items() for kind, t in codes.items())


def test_formats_without_scales_stay_beside_those_that_are_trained(tmp_path: Path) -> None:
    loaded = load_model(written(tmp_path / "m"), quantization="none")
    formats = {m.name: parse_format("int4(group=32)") for m in loaded.shape.matrices}
    kept = "layers.0.mlp.down.weight"
    quantization = Quantization(overrides=formats | {kept: parse_format("nf4")})
    start = {n: METHODS["rtn"](loaded.model.weights()[n], quantization.of(n, "linear"), None) for n in formats}
    found = distill(loaded, quantization, TEXTS, start=start)
    assert found[kept] is start[kept]
    weights = loaded.model.weights()

    def losing(codes: dict[str, Any]) -> float:
        rounded = {
            n: CodedMatrix(quantization.of(n, "linear"), c, weights[n].shape[1], weights[n].dtype).dense()
            for n, c in codes.items()
        }
        spec = loaded.model.spec
        exact, other = (Decoder(spec, w, rope_length=128) for w in (weights, {**weights, **rounded}))
        return kl(run(exact, TEXTS), run(other, TEXTS))

    assert losing(found) < losing(start)


def test_where_no_format_has_scales_nothing_is_trained(tmp_path: Path) -> None:
    """As where `mixed` chose ternary for all matrices of a BitNet, and bfloat16 for its embedding."""
    loaded = load_model(written(tmp_path / "m"), quantization="none")
    assert distill(loaded, parse_quantization("ternary(embed='none')"), TEXTS, start={}) == {}
    loaded.close()


def test_the_lease_covers_what_training_takes(tmp_path: Path) -> None:
    loaded = load_model(written(tmp_path / "m", hidden_size=64, intermediate_size=256), quantization="none")
    quantization = parse_quantization("int4(group=32)")
    start = module._start(loaded.model, quantization, TEXTS)
    with LiveBytes() as live:
        distill(loaded, quantization, TEXTS, start=start)
    assert 0.3 < live.peak / training_bytes(loaded.model, quantization, TEXTS) < 1
    ledger = Ledger(64 << 20, reason="test")
    again = load_model(tmp_path / "m", quantization="none", ledger=ledger)
    least = training_bytes(loaded.model, quantization, TEXTS)
    with (
        ledger.lease("kv", (64 << 20) - ledger.leased_bytes - least + 1, "others"),
        pytest.raises(BudgetError, match="training"),
    ):
        distill(again, quantization, TEXTS, start=start)
    again.close()
    assert ledger.leased_bytes == 0


def test_refusals(tmp_path: Path) -> None:
    loaded = load_model(written(tmp_path / "m"), quantization="none")
    with pytest.raises(ConfigError, match="unknown format of this method 'nf4'; accepted: int4, int5, int8"):
        distill(loaded, parse_quantization("nf4"), TEXTS)
    with pytest.raises(ConfigError, match="'distill' needs calibration text"):
        distill(loaded, parse_quantization("int4"), [[3]])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = written(tmp_path / "m"), tmp_path / "out"
    (tmp_path / "text").write_text("the cat sat on the mat. " * 40)
    options = ["--format", "int4(group=32)", "--method", "distill", "--text", str(tmp_path / "text"), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(folder), str(out), *options])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == "distill"
    assert load_model(out).model.weight_bytes == report["bytes_after"]
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(folder), str(out), *options])
    assert ended.value.code
    assert "is not empty" in capsys.readouterr().err
