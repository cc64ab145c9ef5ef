"""Matrices that stay on disk multiply as those in memory do, whatever the shape and the order of use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pagoda.core.errors import WeightsError
from pagoda.weights import rows as rows_module
from pagoda.weights import streaming
from pagoda.weights.filling import pack_matrix
from pagoda.weights.packed import PanelMatrix
from pagoda.weights.quantization import parse_format
from pagoda.weights.reader import Checkpoint
from pagoda.weights.rows import StoredRows, runs_of
from pagoda.weights.streaming import StreamedMatrix, WeightStream

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

SHAPES = {"a": (48, 64), "b": (37, 130), "c": (160, 33)}
FORMATS = ["fp32", "bf16", "int8", "int4(group=32)", "int4(symmetric=True)", "int5"]


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is several units."""
    units = StoredRows.units
    monkeypatch.setattr(StoredRows, "units", lambda self: units(self, 16 * self.row_bytes))


def stream_of(folder: Path, text: str) -> tuple[WeightStream, dict[str, StreamedMatrix], dict[str, PanelMatrix]]:
    """Streamed matrices and the same in memory."""
    format, packed, tensors, codes = parse_format(text), {}, {}, {}
    dtype = torch.bfloat16 if text == "bf16" else torch.float32
    for n, (name, shape) in enumerate(SHAPES.items()):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(n)).to(dtype)
        packed[name] = pack_matrix(format, weight, dtype)
        codes[name] = format.quantize(weight.float())
        tensors[name] = codes[name].get("codes", weight)
    save_file({"odd": torch.zeros(3)} | tensors, folder / "model.safetensors")
    checkpoint = Checkpoint.open(folder)
    stored = [
        StoredRows(format.kernel, *SHAPES[n], runs_of([(0, SHAPES[n][0], checkpoint.entries[n])])) for n in SHAPES
    ]
    assert [s.why_not() for s in stored] == [None] * 3
    stream = WeightStream(stored, checkpoint)
    found = {name: StreamedMatrix(format, dtype, stream, n, codes[name]) for n, name in enumerate(SHAPES)}
    return stream, found, packed  # type: ignore[return-value]


@pytest.mark.parametrize("text", FORMATS)
def test_products_and_look_ups_are_those_of_a_matrix_in_memory(tmp_path: Path, text: str) -> None:
    stream, streamed, packed = stream_of(tmp_path, text)
    for step in range(3):
        for name, matrix in streamed.items():
            x = torch.randn(step + 1, SHAPES[name][1]).to(matrix.dtype)
            bias = torch.randn(SHAPES[name][0]).to(matrix.dtype)
            assert torch.equal(matrix.linear(x, bias), packed[name].linear(x, bias))
            assert torch.equal(matrix.wide_linear(x), packed[name].wide_linear(x))  # passes over the rest of the ring
    ids = torch.tensor([[36, 0], [17, 17]])
    assert torch.equal(streamed["b"].rows(ids), packed["b"].rows(ids))
    assert torch.equal(streamed["c"].dense(), packed["c"].dense())
    assert streamed["a"].nbytes == packed["a"].nbytes - packed["a"].packed.data.nbytes
    assert streamed["a"].linear(torch.zeros(0, 64, dtype=streamed["a"].dtype)).shape == (0, 48)
    stream.close()
    with pytest.raises(WeightsError, match="the model is closed"):
        streamed["a"].linear(torch.zeros(1, 64, dtype=streamed["a"].dtype))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kernel", ["fp32", "bf16"])
def test_numbers_of_another_type_are_converted_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, stored: torch.dtype
) -> None:
    """As loading into memory does; a row that ends inside a panel, several conversions a unit, look-ups."""
    monkeypatch.setattr(streaming, "CONVERTED_BYTES", 1)
    dtype = torch.float32 if kernel == "fp32" else torch.bfloat16
    weight = torch.randn(77, 129, generator=torch.Generator().manual_seed(0)).to(stored)
    save_file({"odd": torch.zeros(3), "w": weight}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    rows = StoredRows(kernel, 77, 129, runs_of([(0, 77, checkpoint.entries["w"])]))
    assert (rows.why_not(), rows.row_bytes) == (None, 129 * stored.itemsize)
    monkeypatch.setattr(StoredRows, "units", lambda self: [self._unit(0, 48), self._unit(48, 77)])
    stream = WeightStream([rows], checkpoint)
    found = StreamedMatrix(parse_format(kernel), dtype, stream, 0, {})
    wanted = pack_matrix(parse_format(kernel), weight, dtype)
    x = torch.randn(3, 129).to(dtype)
    for _ in range(2):
        assert torch.equal(found.linear(x), wanted.linear(x))
    assert torch.equal(found.rows(torch.tensor([76, 0])), wanted.rows(torch.tensor([76, 0])))
    assert stream.bytes_per_pass <= 77 * 129 * stored.itemsize + 4 * 8192
    stream.close()


def test_a_file_that_changes_while_it_is_streamed(tmp_path: Path) -> None:
    stream, streamed, _ = stream_of(tmp_path, "fp32")
    streamed["a"].linear(torch.zeros(1, 64))
    os.utime(tmp_path / "model.safetensors", ns=(0, 0))
    with pytest.raises(WeightsError, match=r"model.safetensors: changed while tensor 'b' was read"):
        streamed["b"].linear(torch.zeros(1, 130))
    with pytest.raises(WeightsError, match="changed while tensor 'b'"):
        streamed["b"].rows(torch.tensor([1]))
    stream.close()


def test_a_file_cut_while_it_is_streamed(tmp_path: Path) -> None:
    stream, streamed, _ = stream_of(tmp_path, "fp32")
    os.truncate(tmp_path / "model.safetensors", 3000)

    def whole_step() -> None:
        for name, matrix in streamed.items():
            matrix.linear(torch.zeros(1, SHAPES[name][1]))

    with pytest.raises(WeightsError, match=r"model.safetensors: .*tensor '.'.* (ends early|was read)"):
        whole_step()
    stream.close()


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    weight = torch.zeros(32, 64)
    weight[20, 3] = torch.nan
    save_file({"w": weight}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    stored = StoredRows("fp32", 32, 64, runs_of([(0, 32, checkpoint.entries["w"])]))
    stream = WeightStream([stored], checkpoint)
    with pytest.raises(WeightsError, match="tensor 'w': a value is infinite or not a number"):
        StreamedMatrix(parse_format("fp32"), torch.float32, stream, 0, {}).linear(torch.zeros(1, 64))
    stream.close()


def test_rows_that_cannot_be_taken_as_they_lie(tmp_path: Path) -> None:
    tensors = {"half": torch.zeros(32, 64, dtype=torch.float16), "a": torch.zeros(8, 64), "b": torch.zeros(24, 64)}
    tensors["top"] = torch.zeros(16, 64)
    save_file(tensors, tmp_path / "model.safetensors")
    entries = Checkpoint.open(tmp_path).entries
    cases = {
        "tensor 'half' is stored as F16, fp32 asks for F32": [(0, 16, entries["top"]), (16, 32, entries["half"])],
        "tensor 'b' begins at row 8, inside a panel of 16": [(8, 24, entries["b"]), (0, 8, entries["a"])],
        "rows 8 to 32 come from no tensor": [(0, 8, entries["a"])],
    }
    for words, runs in cases.items():
        reason = StoredRows("fp32", 32, 64, runs_of(runs)).why_not()
        assert reason is not None
        assert words in reason
    whole = StoredRows("fp32", 32, 64, runs_of([(0, 8, entries["a"]), (8, 24, entries["b"])]))
    assert rows_module.rows_of_unit(256, 100) == 16
    assert len(whole.units()) == 2
