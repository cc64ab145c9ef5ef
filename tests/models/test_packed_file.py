"""A file of packed weights: what it gives is what loading makes, and what does not fit is left alone with a reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda import LLM, SamplingParams
from pagoda.budget import MachineProbe
from pagoda.budget.ledger import Ledger
from pagoda.core.errors import BudgetError, ConfigError, ModelError
from pagoda.models import packed_rows
from pagoda.models.load import Loaded, load_model
from pagoda.models.quantize import quantize_model
from pagoda.weights.packed import equal
from pagoda.weights.quantization import parse_quantization

from . import fake_model

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
FORMATS = ["auto", "fp16", "int8", "fp8", "int4(group=32)", "int5(group=48)", "nf4(group=32)", "ternary", "w8a8"]


def write(folder: Path, quantization: str = "auto", **options: Any) -> Path:
    """The file of the model in ``folder``."""
    loaded = load_model(folder, quantization=quantization, use_packed=False, **options)
    assert loaded.packed is not None
    assert loaded.packed.write() == loaded.packed.file.stat().st_size
    loaded.close()
    return loaded.packed.file


def same_weights(one: Loaded, other: Loaded) -> bool:
    ours, theirs = one.model.weights(), other.model.weights()  # type: ignore[union-attr]
    assert set(ours) == set(theirs)
    return all(equal(weight, theirs[name]) for name, weight in ours.items())


def tokens(folder: Path, **options: Any) -> list[int]:
    with LLM(str(folder), memory="4GiB", kv_memory="1MiB", num_threads=1, **options) as llm:
        return llm.generate([[3, 9, 4, 70, 5]], GREEDY)[0].token_ids


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantization", FORMATS)
def test_what_is_mapped_is_what_loading_makes(tmp_path: Path, quantization: str, tied: bool) -> None:
    folder = fake_model.write(tmp_path / "m", tie_word_embeddings=tied, torch_dtype="bfloat16")
    file = write(folder, quantization, dtype="bfloat16")
    plain = load_model(folder, quantization=quantization, dtype="bfloat16", use_packed=False)
    mapped = load_model(folder, quantization=quantization, dtype="bfloat16")
    assert same_weights(plain, mapped)
    assert mapped.placement == f"resident, mapped from {file}"
    assert plain.placement.startswith("resident")
    assert mapped.fingerprint == plain.fingerprint, "kept KV goes on being of use"


def test_a_file_of_other_formats_is_named_where_none_were_asked_for(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    file = write(folder, "int8")
    loaded = load_model(folder)
    assert f"is not there, only {file.name}; run `pagoda pack` again" in loaded.placement
    assert load_model(folder, quantization="w8a8").placement == "resident", "another format was asked for"


@pytest.mark.parametrize("quantization", ["auto", "int8"])
def test_tokens_are_the_same(tmp_path: Path, quantization: str) -> None:
    folder = fake_model.write(tmp_path / "m")
    before = tokens(folder, quantization=quantization)
    file = write(folder, quantization)
    assert tokens(folder, quantization=quantization) == before
    assert file.parent == folder / packed_rows.FOLDER


def test_a_tied_head_of_its_own_values_is_kept(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", tie_word_embeddings=True)
    tensors = fake_model.weights(fake_model.CONFIG | {"tie_word_embeddings": False})
    fake_model.save(folder, tensors)
    write(folder)
    plain, mapped = load_model(folder, use_packed=False), load_model(folder)
    assert "lm_head.weight" in plain.model.weights()  # type: ignore[union-attr]
    assert same_weights(plain, mapped)


def test_experts_are_mapped_too(tmp_path: Path) -> None:
    mixture = {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "head_dim": 8, "norm_topk_prob": True,
    }  # fmt: skip
    folder = fake_model.write(tmp_path / "m", **mixture)
    before = tokens(folder)
    write(folder)
    mapped = load_model(folder)
    assert mapped.placement.startswith("resident, mapped")
    assert same_experts(load_model(folder, use_packed=False), mapped)
    mapped.close()
    assert tokens(folder) == before


def same_experts(one: Loaded, other: Loaded) -> bool:
    found = [
        (ours, theirs.experts[number])
        for name, theirs in other.model.weights().items()  # type: ignore[union-attr]
        if hasattr(theirs, "experts")
        for number, ours in enumerate(one.model.weights()[name].experts)  # type: ignore[union-attr]
    ]
    return bool(found) and all(equal(*pair) for pair in found)


def stale(folder: Path, file: Path) -> None:
    os.utime(folder / "model.safetensors", ns=(1, 1))


def shorter(folder: Path, file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def empty(folder: Path, file: Path) -> None:
    file.write_bytes(b"")


def other_order(folder: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"layout": "1"', b'"layout": "0"'))


def other_formats(folder: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'\\"fp32\\"', b'\\"fp16\\"', 1))


def other_sizes(folder: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"layers.0.norm1.weight", b"layers.9.norm1.weight", 1))


@pytest.mark.parametrize(("damage", "reason"), [
    (stale, "the model's files are not those that it was made of"), (shorter, "truncated"), (empty, "truncated"),
    (other_order, "its panels are of layout 0, this Pagoda reads 1"), (other_formats, "it has other formats"),
    (other_sizes, "layers.0.norm1.weight is missing, or has another size"),
])  # fmt: skip
def test_what_does_not_fit_is_left_alone_with_a_reason(tmp_path: Path, damage: Any, reason: str) -> None:
    folder = fake_model.write(tmp_path / "m")
    before, file = tokens(folder), write(folder)
    damage(folder, file)
    loaded = load_model(folder)
    assert f"{file} is left alone: " in loaded.placement
    assert reason in loaded.placement
    assert "\n" not in loaded.placement
    loaded.close()
    assert tokens(folder) == before
    assert write(folder) == file, "and is written anew"
    assert load_model(folder).placement.startswith("resident, mapped")


def test_kernels_that_read_no_panels_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_model.write(tmp_path / "m")
    write(folder)
    monkeypatch.setattr("pagoda.kernels.cpu.best_isa", lambda: "base")
    loaded = load_model(folder)
    assert (
        loaded.placement
        == f"resident; {folder}/packed is left alone: the kernels of this machine read rows, not panels"
    )
    assert load_model(folder, quantization="none").placement == "resident"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_model.write(tmp_path / "m")
    file = write(folder)
    file.chmod(0o444)
    file.parent.chmod(0o555)
    assert load_model(folder).placement == f"resident, mapped from {file}", "reading needs no more"
    file.parent.chmod(0o755)
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    with pytest.raises(ConfigError, match="packed: cannot be written to"):
        write(folder)


def test_formats_without_panels_are_refused(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", hidden_size=64, intermediate_size=64)
    with pytest.raises(ModelError, match="is not kept in panels"):
        write(folder, "int3(rank=0, group=64)")
    assert not list(tmp_path.glob("m/packed/*"))


def test_a_quantized_checkpoint_is_packed_as_it_is(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    quantize_model(load_model(folder, quantization="none"), tmp_path / "q", parse_quantization("int8"))
    file = write(tmp_path / "q")
    assert file.name.startswith("int8")
    assert same_weights(load_model(tmp_path / "q", use_packed=False), load_model(tmp_path / "q"))


def test_the_ledger_counts_mapped_weights_as_weights(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", hidden_size=256, intermediate_size=2048, num_hidden_layers=8)
    write(folder)
    with LLM(str(folder), memory="4GiB", kv_memory="1MiB", num_threads=1) as llm:
        weights = llm.stats()["memory"]["accounts"]["weights"]
        runtime = llm.stats()["memory"]["accounts"]["runtime"]["resident_bytes"]
        assert weights["leased_bytes"] == weights["resident_bytes"] > 50 << 20
        assert runtime <= MachineProbe().rss() - weights["resident_bytes"] + (8 << 20)
        assert llm.stats()["memory"]["unaccounted_share"] < 0.1


def test_a_budget_below_the_weights_is_refused_before_they_are_mapped(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", hidden_size=256)
    write(folder)
    with pytest.raises(BudgetError, match="weights"):
        load_model(folder, ledger=Ledger(8 << 20), weights="resident")


def test_mapped_memory_reads_as_the_file(tmp_path: Path) -> None:
    from pagoda.kernels.memory import map_file

    (tmp_path / "f").write_bytes(bytes(range(256)) * 20)
    told: list[int] = []
    with open(tmp_path / "f", "rb") as file:
        mapped = map_file(file, 5000, told.append)
    assert mapped.tolist() == [n % 256 for n in range(5000)]
    assert told == [5000]
    assert mapped.dtype == torch.uint8


def test_a_file_to_be_mapped_is_written_in_huge_pages_of_it(tmp_path: Path) -> None:
    """Tensors that end anywhere; a last piece that is shorter."""
    from pagoda.weights import writer

    pieces = writer._Pieces(tmp_path / "f")
    sizes: list[int] = []
    raw = pieces._raw
    pieces._raw = Raw(raw.write, sizes)  # type: ignore[assignment]
    data = bytes(range(251)) * 20_000
    at = 0
    for count in (4096, 3_000_000, 1, 2_000_000):
        pieces.seek(at)
        pieces.write(memoryview(data)[at : at + count])
        at += count
    pieces.flush()
    raw.close()
    assert sizes == [writer.HUGE_BYTES, writer.HUGE_BYTES, at - 2 * writer.HUGE_BYTES]
    assert (tmp_path / "f").read_bytes() == data[:at]


class Raw:
    """A file that notes how much it was given at once."""

    def __init__(self, write: Any, sizes: list[int]) -> None:
        self._write, self._sizes = write, sizes

    def write(self, data: memoryview) -> int:
        self._sizes.append(len(data))
        return int(self._write(data))
