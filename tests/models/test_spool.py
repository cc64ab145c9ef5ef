"""Checkpoints that cannot be multiplied as they lie: packed once, streamed from there, the same tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError, ConfigError, WeightsError
from pagoda.kv.dense import DenseCache, DenseView
from pagoda.models import families, spool
from pagoda.models.load import load_model
from pagoda.models.placement import Room
from pagoda.models.quantize import quantize_model
from pagoda.weights import built_rows, packed
from pagoda.weights.built import BuiltMatrix
from pagoda.weights.quantization import parse_quantization
from pagoda.weights.streaming import WeightStream

from . import fake_model
from .test_gguf import write as write_gguf

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

CONFIG = fake_model.CONFIG | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3}
GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


def streamed(folder: Path, spool_dir: Path, **options: Any) -> Any:
    """With nothing kept that need not be."""
    return load_model(folder, weights="stream", ledger=Ledger(256 << 20), spool_dir=str(spool_dir), **options)


def logits(loaded: Any, ids: list[int]) -> torch.Tensor:
    """Of the last token."""
    view = DenseView(DenseCache(), [0], [len(ids)])
    hidden = loaded.model.forward(torch.tensor(ids), torch.arange(len(ids)), view)
    return loaded.model.logits(hidden[-1:])


def same_products(one: Any, other: Any) -> None:
    """Of every matrix: what it gives for a few tokens, and its rows where it is looked up."""
    for name, weight in one.model.weights().items():
        found = other.model.weights()[name]
        if isinstance(weight, torch.Tensor):
            assert torch.equal(weight, found), name
            continue
        ids = torch.tensor([[0, weight.shape[0] - 1], [3, 0]])
        assert torch.equal(weight.rows(ids), found.rows(ids)), name
        if name == "embed.weight" and "lm_head.weight" in one.model.weights():
            continue  # it is only looked up
        x = torch.randn(2, weight.shape[1]).to(one.model.dtype)
        assert torch.equal(weight.linear(x), found.linear(x)), name


@pytest.mark.parametrize("text", ["int4(group=32)", "int4(embed='same')", "nf4", "fp8", "ternary"])
def test_a_format_that_the_checkpoint_does_not_have(tmp_path: Path, text: str) -> None:
    """The codes are those of loading into memory; the file is written once, and leases go back.

    Not of formats that fit the matrix as a whole: the last bits of a fit go by where the matrix lies in memory.
    """
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    resident = load_model(folder, quantization=text)
    for _ in range(2):
        loaded = streamed(folder, tmp_path / "spool", quantization=text)
        assert loaded.stream.streamed
        assert loaded.spool is not None
        assert f"packed for it in {loaded.spool} (" in loaded.placement
        assert loaded.fingerprint == resident.fingerprint, "KV of one serves the other"
        same_products(resident, loaded)
        written = [(file, file.stat().st_mtime_ns) for file in (tmp_path / "spool").glob("*.safetensors")]
        assert [file for file, _ in written] == [loaded.spool]
        loaded.close()
        assert loaded.footprint.leased_bytes == 0
        lock = loaded.spool.with_suffix(".lock")
        if lock.is_file():  # from now on nothing can be locked here, and need not be
            lock.unlink()
            lock.mkdir()
    assert os.stat(written[0][0]).st_mtime_ns == written[0][1]


def test_plain_numbers_become_others_as_they_are_read(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    resident = load_model(folder, quantization="fp16")
    loaded = streamed(folder, tmp_path / "spool", quantization="fp16")
    assert loaded.stream.streamed
    assert loaded.spool is None
    same_products(resident, loaded)
    loaded.close()


@pytest.mark.parametrize("text", ["nf4", "dgq", "fp8", "int3", "int2", "bitstack(blocks=3)", "fp16", "ternary"])
def test_folders_of_quantize_are_streamed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    quantize_model(load_model(folder, quantization="none"), tmp_path / "q", parse_quantization(text))
    monkeypatch.setattr(built_rows, "UNIT_BYTES", 4096)  # several units a matrix, of several tiles
    for module in (built_rows, packed):
        monkeypatch.setattr(module, "TILE_ELEMS", 4096)
    resident, loaded = load_model(tmp_path / "q"), streamed(tmp_path / "q", tmp_path / "spool")
    assert loaded.stream.streamed
    assert loaded.spool is None
    assert not (tmp_path / "spool").exists()
    for _ in range(2):
        same_products(resident, loaded)
    loaded.close()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16"])
def test_gguf_files_are_streamed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Heads of q and k are put in order as they are read."""
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    file = write_gguf(folder, tmp_path / "m.gguf", kind)
    monkeypatch.setattr(built_rows, "UNIT_BYTES", 20000)
    resident, loaded = load_model(file), streamed(file, tmp_path / "spool")
    assert len(loaded.stream.streamed) >= 12
    assert loaded.spool is None
    matrices = sum(m.rows * m.cols for m in loaded.shape.matrices if m.name in loaded.stream.streamed)
    assert loaded.stream.step_bytes < matrices * (2.1 if kind == "F16" else 1.1), "what lies on disk is read"
    for _ in range(2):
        same_products(resident, loaded)
    rows, starts, read = [3, 17, 0, 3, 18], [], WeightStream.read_unit
    monkeypatch.setattr(WeightStream, "read_unit", lambda self, unit: starts.append(unit.start) or read(self, unit))
    for built in (weight for weight in loaded.model.weights().values() if isinstance(weight, BuiltMatrix)):
        built.rows(torch.tensor(rows))
        assert sorted(starts) == sorted({built.stored.unit_of(row).start for row in rows}), "each is read once"
        starts.clear()
    loaded.close()


def test_the_tokens_of_a_model_in_memory(tmp_path: Path) -> None:
    """And those of an engine that has room for all of it, and packs nothing."""
    folder = fake_model.write(tmp_path / "m", **CONFIG | {"torch_dtype": "bfloat16"})
    options = {"quantization": "int4(group=32)", "spool_dir": str(tmp_path / "spool"), "weights": "stream"}
    with LLM(str(folder), memory="4GiB", **options) as llm:
        wanted = [llm.generate(prompt, GREEDY)[0].token_ids for prompt in ([5, 6, 7], [9])]
        assert llm.stats()["model"]["weights"] == "resident: all of it fits, so that nothing is read from disk"
    assert not (tmp_path / "spool").exists()
    loaded = streamed(folder, tmp_path / "spool", quantization="int4(group=32)")
    for prompt, tokens in zip(([5, 6, 7], [9]), wanted, strict=True):
        for n, token in enumerate(tokens):
            assert int(logits(loaded, [*prompt, *tokens[:n]]).argmax()) == token
    loaded.close()


@pytest.mark.parametrize(
    ("family", "text"),
    [("gpt2", "auto"), ("gpt_oss", "auto"), ("qwen3_moe", "int8"), ("qwen3_moe", "nf4"), ("qwen3_moe", "fp8")],
)
def test_tensors_that_are_transposed_or_stacked_and_experts(tmp_path: Path, family: str, text: str) -> None:
    folder = fake_model.write(tmp_path / "m", **families.family(family).tiny())
    resident, loaded = (
        load_model(folder, quantization=text),
        streamed(folder, tmp_path / "spool", quantization=text),
    )
    assert loaded.stream.streamed
    assert loaded.spool is not None
    assert torch.equal(logits(resident, [1, 2, 3]), logits(loaded, [1, 2, 3]))
    loaded.close()


@pytest.mark.parametrize("text", ["fp8(embed='same')", "fp32"])
def test_codes_without_scales_are_refused_as_in_memory(tmp_path: Path, text: str) -> None:
    """Numbers of 8 bits are nothing without what they are multiplied by, from disk no less than in memory."""
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    tensors = fake_model.weights(CONFIG)
    fake_model.save(folder, {n: t.to(torch.float8_e4m3fn) if t.dim() > 1 else t for n, t in tensors.items()})
    with pytest.raises(WeightsError, match=r"is stored as torch.float8_e4m3fn; accepted: float32"):
        load_model(folder, quantization=text)
    with pytest.raises(WeightsError, match=r"is stored as torch.float8_e4m3fn; accepted: float32"):
        streamed(folder, tmp_path / "spool", quantization=text)


def test_a_disk_without_room_and_a_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"spool_dir '.*file' cannot be used \(File exists\)"):
        streamed(folder, tmp_path / "file", quantization="int4")
    monkeypatch.setattr(spool, "MOST_OF_FREE", 0.0)
    with pytest.raises(ConfigError, match=r"the packed weights take .*; give another folder with --spool-dir"):
        streamed(folder, tmp_path / "spool", quantization="int4")
    assert list((tmp_path / "spool").glob("*.safetensors")) == []


def test_what_will_not_fit_is_said_before_anything_is_written(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **CONFIG | {"num_hidden_layers": 12})
    ledger = Ledger(13 << 19)  # a tokenizer, and half of what a ring takes
    with pytest.raises(BudgetError, match="what is not on disk"):
        load_model(
            folder, quantization="int4", weights="stream", room=lambda *_: Room(0, 0), ledger=ledger,
            spool_dir=str(tmp_path / "spool"),
        )  # fmt: skip
    assert not (tmp_path / "spool").exists()
    assert ledger.leased_bytes == 0


def test_where_a_spool_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert spool.spool_folder(None) == Path("/somewhere/pagoda/spool")
    assert spool.spool_folder("~/there") == Path("~/there").expanduser()
