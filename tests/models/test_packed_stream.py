"""Weights that are read at every step from the file of `pagoda pack`: what runs is what runs from memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda.budget.ledger import Ledger
from pagoda.models import catalog, families
from pagoda.models.load import Loaded, load_model
from pagoda.models.model import Model
from pagoda.models.placement import Room
from pagoda.models.stream_plan import StreamPlan
from pagoda.plan.streamed import Rooms
from pagoda.plan.subject import Subject
from pagoda.weights.panel_rows import PanelRows
from pagoda.weights.panels_on_disk import PanelsOnDisk

from . import fake_model
from .test_gguf import write as write_gguf
from .test_packed_file import FORMATS, stale, write
from .test_spool import logits

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is several units."""
    units = PanelRows.units
    monkeypatch.setattr(PanelRows, "units", lambda self: units(self, 2 * self.panel_bytes))


def streamed(folder: Path, room: int = 0, **options: Any) -> Loaded:
    return load_model(folder, weights="stream", room=lambda *_: Room(room, room), **options)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantization", ["auto", "bf12", *FORMATS[1:]])
def test_matrices_of_the_file_are_those_of_memory(tmp_path: Path, quantization: str, tied: bool) -> None:
    folder = fake_model.write(tmp_path / "m", tie_word_embeddings=tied, hidden_size=64)
    options = {"quantization": quantization, "dtype": "bfloat16"}
    file = write(folder, **options)  # type: ignore[arg-type]
    found, plain = streamed(folder, **options), load_model(folder, use_packed=False, **options)
    assert found.stream is not None
    assert found.placement.endswith(f"read from disk at every step, from {file}")
    matrices = [m for m in plain.shape.matrices if plain.quantization.of(m.name, m.role) is not None]
    assert found.stream.streamed == tuple(m.name for m in matrices)
    for matrix in matrices:
        ours, theirs = found.model.weights()[matrix.name], plain.model.weights()[matrix.name]  # type: ignore[union-attr]
        assert isinstance(ours, PanelsOnDisk)
        ids = torch.tensor([[0, matrix.rows - 1], [17, 17]])
        assert torch.equal(ours.rows(ids), theirs.rows(ids))
        if tied or matrix.role != "embed" or "head" in matrix.name:  # else rows of it are looked up, no more
            x = torch.randn(3, matrix.cols, dtype=torch.bfloat16)
            assert torch.equal(ours.linear(x), theirs.linear(x))
            assert torch.equal(ours.wide_linear(x), theirs.wide_linear(x))
    assert found.fingerprint == plain.fingerprint
    found.close()


@pytest.mark.parametrize("quantization", ["auto", "bf12", "w8a8", "int4(group=32)"])
def test_logits_are_the_same(tmp_path: Path, quantization: str) -> None:
    folder = fake_model.write(tmp_path / "m", tie_word_embeddings=True)
    options = {"quantization": quantization, "dtype": "bfloat16"}
    write(folder, **options)  # type: ignore[arg-type]
    found, plain = streamed(folder, **options), load_model(folder, use_packed=False, **options)
    for ids in ([1, 2, 3], [5], list(range(40))):
        assert torch.equal(logits(found, ids), logits(plain, ids))
    found.close()


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q8_0"])
def test_gguf_files(tmp_path: Path, kind: str) -> None:
    folder = fake_model.write(tmp_path / "m", hidden_size=256, intermediate_size=256)
    file = write_gguf(folder, tmp_path / "m.gguf", kind)
    as_it_lies, plain = streamed(file), load_model(file, use_packed=False)
    write(file)
    found = streamed(file)
    assert found.streams_packed
    assert found.stream is not None
    assert set(found.stream.streamed) >= set(as_it_lies.stream.streamed)  # type: ignore[union-attr]
    assert torch.equal(logits(found, [1, 2, 3]), logits(plain, [1, 2, 3]))


def planned(path: Path, dtype: str, quantization: str = "auto") -> tuple[Subject, StreamPlan | None]:
    """What `pagoda plan` leaves on disk of a model for which there is no room."""
    subject = Subject.of(str(path), catalog.read_config(str(path)), folder=path)
    subject = replace(subject, dtype=dtype)
    chosen = subject.quantization(quantization)
    stored = subject.stored_dtype if quantization == "auto" else ""
    return subject, Rooms(subject.shape, dtype, chosen, stored, subject.on_disk, subject.packed(chosen)).plan(0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quantization", ["auto", "bf12", "w8a8"])
def test_plans_know_the_file(tmp_path: Path, quantization: str, tied: bool) -> None:
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 5, "tie_word_embeddings": tied}
    folder = fake_model.write(tmp_path / "m", **shape)
    options = {"quantization": quantization, "dtype": "bfloat16"}
    file = write(folder, **options)  # type: ignore[arg-type]
    found = streamed(folder, **options).stream
    assert found is not None
    subject, plan = planned(folder, "bfloat16", quantization)
    assert plan == found
    stale(folder, file)
    assert subject.packed(subject.quantization(quantization)) == {}


def test_plans_know_the_file_beside_a_gguf_file(tmp_path: Path) -> None:
    file = write_gguf(
        fake_model.write(tmp_path / "m", hidden_size=256, intermediate_size=256), tmp_path / "m.gguf", "Q8_0"
    )
    write(file)
    loaded = streamed(file)
    assert loaded.streams_packed
    assert planned(file, loaded.dtype)[1] == loaded.stream


def test_what_is_stored_transposed_needs_no_spool(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **families.family("gpt2").tiny())
    write(folder)
    found = streamed(folder, spool_dir=str(tmp_path / "spool"))
    assert found.streams_packed
    assert not (tmp_path / "spool").exists()
    assert torch.equal(logits(found, [1, 2, 3]), logits(load_model(folder), [1, 2, 3]))


def test_mixtures_are_streamed_as_before(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", **families.family("qwen3_moe").tiny())
    before = streamed(folder).placement
    write(folder)
    found = streamed(folder)
    assert not found.streams_packed
    assert found.placement == before
    assert before.startswith("experts: ")


def test_twelve_bits_are_read_of_twelve_and_sixteen_without_the_file(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", dtype=torch.bfloat16)
    options = {"quantization": "bf12", "dtype": "bfloat16"}
    whole = streamed(folder, **options)
    write(folder, **options)  # type: ignore[arg-type]
    packed = streamed(folder, **options)
    assert whole.stream is not None
    assert packed.stream is not None
    assert packed.stream.step_bytes == 0.75 * whole.stream.step_bytes
    assert packed.stream.streamed == whole.stream.streamed
    assert packed.stream.passing_bytes < whole.stream.passing_bytes, "nothing is laid out"


def test_what_is_kept_is_in_memory_and_leased(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", num_hidden_layers=4)
    options = {"quantization": "bf12", "dtype": "bfloat16"}
    write(folder, **options)  # type: ignore[arg-type]
    nothing = streamed(folder, **options)
    assert nothing.stream is not None
    ledger = Ledger(1 << 30)
    found = streamed(folder, nothing.stream.num_bytes + 20_000, ledger=ledger, **options)
    assert found.stream is not None
    assert 0 < len(found.stream.streamed) < len(nothing.stream.streamed)
    model = found.model
    assert isinstance(model, Model)
    assert model.weight_bytes == found.stream.resident_bytes + model.beyond_bytes
    assert ledger.leased_by("weights") <= found.stream.num_bytes <= nothing.stream.num_bytes + 20_000
    found.close()


def test_exponents_that_lie_far_apart_are_read_in_sixteen_bits(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    wide = {n: t * 2.0 ** torch.randint(-60, 60, t.shape) for n, t in fake_model.weights(fake_model.CONFIG).items()}
    fake_model.save(folder, wide)
    options = {"quantization": "bf12", "dtype": "bfloat16"}
    write(folder, **options)  # type: ignore[arg-type]
    found, plain = streamed(folder, **options), load_model(folder, use_packed=False, **options)
    ours, theirs = (one.model.weights()["layers.0.mlp.down.weight"] for one in (found, plain))  # type: ignore[union-attr]
    assert ours.format.kernel == theirs.format.kernel == "bf16"
    x = torch.randn(2, 48, dtype=torch.bfloat16)
    assert torch.equal(ours.linear(x), theirs.linear(x))


def test_a_tied_head_of_its_own_values_is_kept_and_so_is_the_embedding(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m", tie_word_embeddings=True)
    fake_model.save(folder, fake_model.weights(fake_model.CONFIG | {"tie_word_embeddings": False}))
    write(folder)
    found, plain = streamed(folder), load_model(folder, use_packed=False)
    assert found.stream is not None
    assert "embed.weight" not in found.stream.streamed
    assert torch.equal(logits(found, [1, 2, 3]), logits(plain, [1, 2, 3]))


def test_a_file_that_does_not_fit_is_left_alone_with_the_reason(tmp_path: Path) -> None:
    folder = fake_model.write(tmp_path / "m")
    stale(folder, write(folder))
    found = streamed(folder)
    assert not found.streams_packed
    assert "read from disk at every step; " in found.placement
    assert "is left alone: the model's files are not those that it was made of" in found.placement
