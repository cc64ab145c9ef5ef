"""Large tensors come some rows at a time; what is loaded is the same as if they came whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda.budget.ledger import Ledger
from pagoda.core.errors import WeightsError
from pagoda.models.load import load_model
from pagoda.models.model import Model
from pagoda.models.quantize import quantize_model
from pagoda.weights import source
from pagoda.weights.filling import new_filling
from pagoda.weights.packed import CodedMatrix, equal
from pagoda.weights.quantization import parse_format, parse_quantization

from ..sampling.test_scratch import peak_bytes
from . import fake_model
from .test_activation_bytes import LiveBytes
from .test_foreign import CASES
from .test_foreign import write as write_foreign

SIZES = {"hidden_size": 64, "intermediate_size": 160, "torch_dtype": "bfloat16"}


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[int]]]:
    """From which rows on each tensor came, with pieces of 2 KiB."""
    found: dict[str, list[int]] = {}
    load_tensor = Model.load_tensor

    def watched(self: Model, name: str, tensor: Any, start: int | None = None) -> bool:
        found.setdefault(name, []).append(-1 if start is None else start)
        return load_tensor(self, name, tensor, start)

    monkeypatch.setattr(Model, "load_tensor", watched)
    return found


def same_in_pieces(
    monkeypatch: pytest.MonkeyPatch, starts: dict[str, list[int]], load: Callable[[], Any]
) -> dict[str, list[int]]:
    """Loads twice, whole and in pieces of 2 KiB, and compares."""
    whole = load().model.weights()
    monkeypatch.setattr(source, "UNIT_BYTES", 2048)
    starts.clear()
    cut = load().model.weights()
    assert cut.keys() == whole.keys()
    assert all(equal(weight, whole[name]) for name, weight in cut.items())
    return starts


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("text", ["none", "auto", "int8", "int4(group=32)", "fp8", "ternary"])
def test_plain_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: dict[str, list[int]], text: str, tied: bool
) -> None:
    folder = fake_model.write(tmp_path / "m", dtype=torch.bfloat16, tie_word_embeddings=tied, **SIZES)
    found = same_in_pieces(monkeypatch, starts, lambda: load_model(folder, quantization=text, dtype="bfloat16"))
    assert found["model.embed_tokens.weight"] == list(range(0, 384, 16))
    assert found["model.layers.0.mlp.down_proj.weight"] == list(range(0, 64, 16))
    assert found["model.norm.weight"] == [-1]


def test_a_format_of_whole_matrices_gets_them_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: dict[str, list[int]]
) -> None:
    folder = fake_model.write(tmp_path / "m", dtype=torch.bfloat16, **SIZES)
    found = same_in_pieces(monkeypatch, starts, lambda: load_model(folder, quantization="int3", dtype="bfloat16"))
    assert found["model.layers.0.mlp.down_proj.weight"] == [-1]
    assert len(found["model.embed_tokens.weight"]) > 1


@pytest.mark.parametrize("text", ["int4(group=32)", "int4(symmetric=True)", "int8", "nf4", "bitstack(blocks=2)"])
def test_codes_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: dict[str, list[int]], text: str
) -> None:
    plain = load_model(fake_model.write(tmp_path / "m", vocab_size=4096, **SIZES), quantization="none")
    quantize_model(plain, tmp_path / "q", parse_quantization(text))
    found = same_in_pieces(monkeypatch, starts, lambda: load_model(tmp_path / "q"))
    assert len(found["pagoda.embed.weight"]) > 1
    assert (found["pagoda.layers.1.mlp.gate_up.weight"] == [-1]) is text.startswith("bitstack")


@pytest.mark.parametrize("name", ["ct int4", "ct int4 asymmetric", "ct int8", "ct fp8", "gptq", "bnb nf4"])
def test_codes_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: dict[str, list[int]], name: str
) -> None:
    _, packed = write_foreign(tmp_path, *CASES[name][:2], intermediate_size=320, vocab_size=4096)
    found = same_in_pieces(monkeypatch, starts, lambda: load_model(packed))
    by_rows = name in ("ct int4", "ct int8", "ct fp8")
    assert (len(found["model.layers.0.mlp.gate_proj.weight"]) > 1) is by_rows


def test_a_value_in_a_later_piece_that_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "UNIT_BYTES", 2048)
    folder, tensors = fake_model.write(tmp_path / "m", **SIZES), fake_model.weights(fake_model.CONFIG | SIZES)
    tensors["model.embed_tokens.weight"][377, 4] = float("inf")
    fake_model.save(folder, tensors)
    ledger = Ledger(64 << 20)
    with pytest.raises(WeightsError, match=r"embed_tokens.*not a number"):
        load_model(folder, quantization="int4", ledger=ledger)
    assert ledger.leased_bytes == 0


@pytest.mark.parametrize("text", ["int3(embed='none')", "int2(embed='none')", "bitstack(blocks=2, embed='none')"])
def test_codes_that_come_ready_take_nothing_to_pack(tmp_path: Path, text: str) -> None:
    """Formats of whole matrices: what stands beside the model is what is read, and no matrix is held unpacked."""
    sizes = {"hidden_size": 128, "intermediate_size": 512}
    plain = fake_model.write(tmp_path / "m", **sizes)
    quantize_model(load_model(plain, quantization="none"), tmp_path / "q", parse_quantization(text))
    ledger, loaded = Ledger(256 << 20), list[Any]()
    allocated = peak_bytes(lambda: loaded.append(load_model(tmp_path / "q", ledger=ledger)))
    staged = next(a.peak_bytes for a in ledger.report().accounts if a.account == "staging")
    largest = 1024 * 128 * 4  # gate and up, in float32
    assert staged < largest + 8 * 8192
    assert allocated < loaded[0].model.weight_bytes + largest
    other = Ledger(256 << 20)
    load_model(tmp_path / "q", quantization="int4", ledger=other)
    assert next(a.peak_bytes for a in other.report().accounts if a.account == "staging") > 4 * largest


PEAK = """
import sys
import torch
from pagoda.budget.ledger import Ledger
from pagoda.models import families, load
def peak(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
torch.ones(8, 8).to(torch.bfloat16) @ torch.ones(8, 8).to(torch.bfloat16)
ledger, before = Ledger(1 << 30), peak()
loaded = load.load_model(sys.argv[1], dtype='bfloat16', quantization='int4', ledger=ledger)
print(peak() - before, loaded.model.weight_bytes, ledger.report().peak_bytes)
"""


def test_peak_memory_is_less_than_the_packed_model_and_its_largest_tensor(tmp_path: Path) -> None:
    """An embedding of 75 MiB is read through a ring of an eighth of the checkpoint, and the lease said so."""
    sizes = {"hidden_size": 768, "num_hidden_layers": 1, "vocab_size": 51200}
    fake_model.write(tmp_path / "m", dtype=torch.bfloat16, tie_word_embeddings=True, **sizes)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "m")], check=True, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown, model, leased = map(int, done.stdout.split())
    assert leased <= model + (32 << 20)
    assert grown <= leased + (12 << 20)  # code that runs for the first time; the embedding alone would be 75 MiB


@pytest.mark.parametrize("text", ["nf4", "dgq"])
def test_codes_become_plain_numbers_in_the_scratch_that_packing_leases(text: str) -> None:
    rows, cols, stored, wanted = 4096, 256, parse_format(text), parse_format("bf16")
    codes = CodedMatrix(stored, stored.quantize(torch.randn(rows, cols)), cols, torch.bfloat16)
    filling = new_filling(wanted, rows, cols, dtype=torch.bfloat16)
    with LiveBytes() as live:
        filling.put(0, codes)
    assert live.peak < wanted.scratch_bytes(rows, cols)
