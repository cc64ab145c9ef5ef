"""`pagoda quantize`: calibrated codes, mixed formats, and folders that load again to the same numbers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from pagoda.bench.weights import perplexity
from pagoda.cli.main import main
from pagoda.core.errors import ConfigError, ModelError
from pagoda.models import families
from pagoda.models.catalog import read_config
from pagoda.models.load import load_model
from pagoda.models.mixed import allocate, exchange, mixed, surprise, useful
from pagoda.models.quantize import kl, quantize_model, run, with_stats
from pagoda.plan.subject import Subject
from pagoda.weights.formats import FORMATS
from pagoda.weights.method_names import BY_MATRIX
from pagoda.weights.methods import METHODS, InputStats, output_error
from pagoda.weights.packed import ExpertStack, PackedMatrix
from pagoda.weights.quantization import parse_format, parse_quantization

from . import fake_model
from .tokenizer_samples import data


def stats(cols: int) -> InputStats:
    """Inputs that depend on one another, some of them large."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(cols, cols, generator=generator) * torch.linspace(0.1, 3, cols)
    found = InputStats.empty(cols)
    found.add(torch.randn(512, cols, generator=generator) @ mix / cols**0.5)
    return found


@pytest.mark.parametrize(
    "text", ["int4(group=32)", "int4(group=64, symmetric=True)", "int5(group=48)", "int8", "w4a8(group=32)"]
)
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_calibrated_methods_lose_less_of_the_outputs_than_rounding(method: str, text: str) -> None:
    w = torch.randn(48, 160, generator=torch.Generator().manual_seed(0)) * 0.05
    format, seen = parse_format(text), stats(160)
    error = {
        name: output_error(w, format.dequantize(METHODS[name](w, format, seen), 160), seen) for name in (method, "rtn")
    }
    assert error[method] <= error["rtn"] * (1.0 if method == "gptq" else 1.02)
    if method == "gptq":
        assert error[method] < 0.8 * error["rtn"]


def test_hqq_lowers_the_norm_that_it_minimizes() -> None:
    w = torch.randn(32, 256, generator=torch.Generator().manual_seed(0)) * 0.05
    w[:, ::50] *= 8
    format = parse_format("int4(group=64)")
    loss = {n: (format.dequantize(METHODS[n](w, format, None), 256) - w).abs().pow(0.7).mean() for n in ("hqq", "rtn")}
    assert loss["hqq"] < 0.99 * loss["rtn"]


@pytest.mark.parametrize("text", [*FORMATS.names(), "int4(embed='same')", "int8(embed='none')"])
def test_a_written_folder_loads_to_the_same_numbers(tmp_path: Path, text: str) -> None:
    source, out = fake_model.write(tmp_path / "m"), tmp_path / "out"
    report = quantize_model(load_model(source, quantization="none"), out, parse_quantization(text))
    ours, direct = load_model(out), load_model(source, quantization=text)
    assert ours.model.weight_bytes == direct.model.weight_bytes == report.bytes_after + direct.model.beyond_bytes
    for name, wanted in direct.model.weights().items():
        found = ours.model.weights()[name]
        if isinstance(wanted, PackedMatrix):
            assert torch.equal(found.dense(), wanted.dense())
        else:
            assert torch.equal(found, wanted)
    assert ours.tokenizer.encode("a") == direct.tokenizer.encode("a")
    planned = Subject.of("m", read_config(str(out)), folder=out)
    assert planned.dtype == ours.dtype
    assert planned.shape.weight_bytes(planned.dtype, planned.quantization("auto")) == report.bytes_after


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_watched_where_it_multiplies(tmp_path: Path, tied: bool) -> None:
    loaded = load_model(fake_model.write(tmp_path / "m", tie_word_embeddings=tied), quantization="none")
    seen = {name: s for name, _, s in with_stats(loaded.model, [[1, 2, 3], [4, 5]], roles=("linear", "embed"))}
    head = seen["embed.weight" if tied else "lm_head.weight"]
    assert head is not None
    assert head.count == seen["layers.0.attn.qkv.weight"].count == 5
    assert tied or seen["embed.weight"] is None, "an embedding that only gives rows is multiplied with nothing"


def test_experts_come_back(tmp_path: Path) -> None:
    config = families.family("mixtral").tiny()
    source, out = fake_model.write(tmp_path / "m", **config), tmp_path / "out"
    quantize_model(load_model(source, quantization="none"), out, parse_quantization("int8"))
    ours, direct = load_model(out).model.weights(), load_model(source, quantization="int8").model.weights()
    for name, wanted in direct.items():
        if isinstance(wanted, ExpertStack):
            assert all(torch.equal(ours[name][e].dense(), wanted[e].dense()) for e in range(wanted.shape[0]))


def test_allocation_spends_bytes_where_they_help_most() -> None:
    harm = {"a": [0.0, 1.0, 9.0], "b": [0.0, 0.1, 0.2], "c": [0.0, 3.0, 4.0]}
    sizes = {name: [8, 4, 2] for name in harm}
    assert allocate(harm, sizes, 6) == {"a": 2, "b": 2, "c": 2}
    assert allocate(harm, sizes, 8) == {"a": 1, "b": 2, "c": 2}
    assert allocate(harm, sizes, 24) == {"a": 0, "b": 0, "c": 0}
    with pytest.raises(ConfigError, match="1 bytes below the smallest"):
        allocate(harm, sizes, 5)


def test_levels_that_others_beat_are_not_looked_at() -> None:
    assert useful([8, 4, 4, 2], [0.0, 0.1, 0.2, 0.3]) == [0, 1, 3]
    assert useful([8, 4, 2], [0.0, 0.0, 0.0]) == [2], "the fewest bytes that lose nothing"
    assert useful([2, 2], [1.0, 1.0]) == [0, 1]


def test_exchange_moves_bytes_to_where_they_do_more() -> None:
    """Alone `a` seems to need its bytes; beside a rounded `b` it is `b` that needs them."""
    sizes = {"a": [8, 4], "b": [8, 4]}
    lost = {(0, 0): 0.0, (0, 1): 3.0, (1, 0): 1.0, (1, 1): 4.0}

    def harm(levels: dict[str, int]) -> float:
        return lost[levels["a"], levels["b"]]

    everything = {"a": [0, 1], "b": [0, 1]}
    assert exchange({"a": 0, "b": 1}, 3.0, sizes, 12, harm, harm, everything) == (1.0, {"a": 1, "b": 0})
    assert exchange({"a": 1, "b": 0}, 1.0, sizes, 12, harm, harm, everything) == (1.0, {"a": 1, "b": 0})
    assert exchange({"a": 1, "b": 1}, 4.0, sizes, 16, harm, harm, everything) == (0.0, {"a": 0, "b": 0})


def test_mixed_keeps_its_budget_and_loses_less_than_uniform_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagoda.models.mixed.ROUNDS", 1)
    folder = data("models/stories260K")
    loaded = load_model(str(folder), quantization="none")
    ids = loaded.tokenizer.encode("Once upon a time there was a little girl. She loved to play outside. " * 3)
    candidates = [parse_format(t) for t in ("int8", "int4", "int3(rank=0)")]
    uniform = parse_quantization("int4(embed='same')")
    budget = loaded.shape.weight_bytes(loaded.dtype, uniform)
    found = mixed(loaded, candidates, budget, [ids], method="rtn")
    assert loaded.shape.weight_bytes(loaded.dtype, found.quantization) <= budget
    assert len(set(found.quantization.overrides.values())) > 1
    exact, loss = run(loaded.model._ready(), [ids]), []
    for quantization in (uniform, found.quantization):
        quantize_model(loaded, out := tmp_path / str(len(loss)), quantization)
        rounded = run(load_model(out).model._ready(), [ids])
        loss.append((kl(exact, rounded) + surprise([ids], rounded) - surprise([ids], exact)) / 2)
    assert loss[1] < loss[0]
    assert loss[1] == pytest.approx(found.lost, abs=1e-4)


def test_gptq_of_lantern_is_within_three_percent_of_its_perplexity(tmp_path: Path) -> None:
    """int4(group=32) on TinyStories: 2.285 exact, 3.32 by rounding, 2.33 by GPTQ over 26,624 tokens of other stories.

    With 16,384 tokens it is 2.33 or 2.38, by which stories they are: less text is not enough for every choice of it.
    """
    text = gzip.decompress(data("text/tinystories_train_head.txt.gz").read_bytes()).decode()
    exact = load_model("lantern", quantization="none")
    ids = exact.tokenizer.encode(text)
    cut = [ids[i : i + 256] for i in range(0, len(ids), 256)]
    judged, calibration = cut[:8], cut[16:120]
    quantization = parse_quantization("int4(group=32)")
    quantize_model(exact, tmp_path / "gptq", quantization, method="gptq", calibration=calibration)
    quantize_model(exact, tmp_path / "rtn", quantization)
    found = {}
    for name in ("gptq", "rtn"):
        found[name] = perplexity(judged, run(load_model(tmp_path / name).model._ready(), judged))
    wanted = perplexity(judged, run(exact.model._ready(), judged))
    assert found["gptq"] < found["rtn"]
    assert found["gptq"] < 1.03 * wanted


def test_refusals(tmp_path: Path) -> None:
    loaded = load_model(fake_model.write(tmp_path / "m"), quantization="none")
    with pytest.raises(ConfigError, match="unknown method 'magic'; accepted: awq, gptq, hqq, rtn"):
        quantize_model(loaded, tmp_path / "o", parse_quantization("int4"), method="magic")
    with pytest.raises(ConfigError, match="needs calibration"):
        quantize_model(loaded, tmp_path / "o", parse_quantization("int4"), method="gptq")
    with pytest.raises(ConfigError, match="unknown format of this method 'nf4'"):
        quantize_model(loaded, tmp_path / "o", parse_quantization("nf4"), method="hqq")
    with pytest.raises(ModelError, match="is not empty"):
        quantize_model(loaded, tmp_path / "m", parse_quantization("int4"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["quantize", "lantern", str(out), "--method", "gptq", "--tokens", "600", "--json"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert report["bytes_after"] < 0.3 * report["bytes_before"]
    assert report["calibration_tokens"] >= 600
    assert load_model(out).model.weight_bytes == report["bytes_after"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "1MiB"], "--size is for --method mixed or mixed+distill or edgemoe"),
        (
            ["--method", "foo"],
            "unknown method 'foo'; accepted: awq, distill, edgemoe, gptq, hqq, mixed, mixed+di",
        ),
        (["--text", "/nonexistent"], "--text /nonexistent: rtn reads no calibration text"),
        (["--method", "hqq", "--tokens", "5"], "--tokens 5: hqq reads no calibration text"),
        (["--method", "gptq", "--tokens", "0"], "--tokens is 0; give a whole number from 1"),
        (["--method", "mixed", "--size", "1KiB", "--tokens", "8"], "--size 1KiB: the smallest model of mixed's"),
    ],
)
def test_what_the_command_would_ignore_or_cannot_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["quantize", "lantern", str(tmp_path / "out"), *options])
    assert ended.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_rounding_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = fake_model.write(tmp_path / "m"), tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["quantize", str(folder), str(out), "--format", "int8", "--json"])
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert (report["method"], report["calibration_tokens"]) == ("rtn", 0)
    assert load_model(out).model.weight_bytes == report["bytes_after"]


def test_the_names_that_are_known_before_torch_is_loaded() -> None:
    assert sorted(METHODS) == sorted(BY_MATRIX)
