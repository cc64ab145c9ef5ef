"""Plain rows to codes in one pass: bit for bit what the formats do in torch (`WeightFormat.quantize`)."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from pagoda.core.errors import WeightsError
from pagoda.kernels import quantize_rows
from pagoda.weights.filling import pack_matrix
from pagoda.weights.quantization import parse_format

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")
from .isas import ISAS

FORMATS = [
    "int8", "w8a8", "int4", "int4(group=32)", "int4(group=64, symmetric=True)", "int4(scale='float32')", "w4a8",
    "int5", "int5(group=48, symmetric=True, scale='float32')", "fp8", "nf4", "nf4(group=32)",
]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(n: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    """Ordinary weights; rows of zeros, of one sign, of ties, of halves below the normal ones; an outlier."""
    w = torch.randn(n, cols, generator=torch.Generator().manual_seed(n * cols)) * 0.05
    if n > 4:
        w[:4] = torch.stack([torch.zeros(cols), w[1].abs(), w[2].sign(), w[3] * 1e-5])
    w[-1, cols // 2] = 900
    return w.to(dtype)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "cols"), [(40, 256), (17, 33), (5, 130), (1, 1)])
def test_the_same_codes_as_the_plain_twin(text: str, dtype: torch.dtype, n: int, cols: int) -> None:
    weight, format = rows(n, cols, dtype), parse_format(text)
    wanted, found = format.quantize(weight.float()), format.quantize_fast(weight, 2)
    assert found is not None
    assert found.keys() == wanted.keys()
    for name, codes in found.items():
        assert codes.dtype == wanted[name].dtype
        assert torch.equal(codes.view(torch.uint8), wanted[name].view(torch.uint8)), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", ["int8", "int4(group=32)", "int4(group=64, symmetric=True)", "int5", "fp8", "nf4"])
def test_the_same_codes_by_every_instruction_set(monkeypatch: pytest.MonkeyPatch, isa: str, text: str) -> None:
    """Columns that fill registers and leave some over, as numbers of any type."""
    monkeypatch.setattr(quantize_rows, "_call", partial(quantize_rows._call, isa=isa))
    for dtype in DTYPES:
        test_the_same_codes_as_the_plain_twin(text, dtype, 19, 150)
        test_the_same_codes_as_the_plain_twin(text, dtype, 5, 27)


@pytest.mark.parametrize("text", ["int8", "int4", "fp8", "nf4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_is_refused(text: str, dtype: torch.dtype, value: float) -> None:
    weight = rows(19, 70, dtype)
    weight[18, 69] = value
    with pytest.raises(WeightsError, match="infinite or not a number"):
        parse_format(text).quantize_fast(weight, 2)


def test_rows_that_the_kernel_does_not_take() -> None:
    assert parse_format("int4").quantize_fast(torch.zeros(16, 64, dtype=torch.float64), 1) is None
    assert parse_format("dgq").quantize_fast(torch.zeros(16, 64), 1) is None


@pytest.mark.parametrize("text", ["int8", "int4(group=32)", "int5"])
def test_a_matrix_packed_either_way(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than are quantized at a time, of a view that is not contiguous."""
    weight, format = rows(96, 40_000, torch.bfloat16)[:, 1:], parse_format(text)
    fast = pack_matrix(format, weight, torch.bfloat16)
    monkeypatch.setattr(type(format), "quantize_fast", lambda *_: None)
    plain = pack_matrix(format, weight, torch.bfloat16)
    for name, tensor in fast.tensors().items():
        assert torch.equal(tensor, plain.tensors()[name]), name
