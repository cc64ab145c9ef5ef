"""bfloat16 in twelve bits: the same numbers whatever they are and however they come; what does not compress is kept."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pagoda.kernels.preferred import isa_of, prefers_bf12
from pagoda.weights.filling import new_filling, pack_matrix
from pagoda.weights.fillings.windows import RARE
from pagoda.weights.formats.bf12 import BF12
from pagoda.weights.formats.bf16 import BF16
from pagoda.weights.packed import CodedMatrix, PackedMatrix, PanelMatrix
from pagoda.weights.quantization import in_panels, parse_format

SHAPES = [(16, 8), (32, 64), (5, 3), (33, 102), (160, 262)]


def trained(rows: int, cols: int) -> torch.Tensor:
    """Normally distributed, with zeros, and in a matrix of some size a denormal number and the largest there are."""
    w = (torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    w[0] = 0
    if rows * cols > RARE * 4:
        w[1, 0], w[2, 1], w[-1, -1] = 1e-40, 3e38, -1e30
    return w


def scattered(rows: int, cols: int) -> torch.Tensor:
    """Every exponent alike often."""
    bits = torch.randint(0, 0x7F80, (rows, cols), generator=torch.Generator().manual_seed(0))
    return bits.to(torch.int16).view(torch.bfloat16)


def same(packed: PackedMatrix, w: torch.Tensor) -> bool:
    return torch.equal(packed.dense().view(torch.int16), w.view(torch.int16))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_bit_comes_back(shape: tuple[int, int]) -> None:
    w = trained(*shape)
    packed = pack_matrix(BF12(), w, torch.bfloat16)
    assert isinstance(packed, PanelMatrix)
    assert same(packed, w)
    if w.numel() < RARE and packed.format == BF16():
        return  # one exception is more than one in so many
    assert packed.format == BF12()
    exceptions = packed.nbytes - BF12().num_bytes(*shape)
    assert exceptions % 4 == 0
    assert 0 <= exceptions <= 4 * w.numel() // RARE


@pytest.mark.parametrize("cuts", [(0, 16, 48, 80, 160), (0, 1, 17, 50, 63, 160), (0, 159, 160)])
@pytest.mark.parametrize("make", [trained, scattered])
def test_rows_come_in_any_order_and_in_parts(cuts: tuple[int, ...], make: object) -> None:
    w = make(160, 262)  # type: ignore[operator]
    whole = pack_matrix(BF12(), w, torch.bfloat16)
    parts = list(pairwise(cuts))
    for order in (parts, parts[::-1]):
        filling = new_filling(BF12(), 160, 262, dtype=torch.bfloat16)
        for first, last in order:
            filling.put(first, w[first:last])
        found = filling.finish(torch.bfloat16)
        assert same(found, w)
        assert found.format == whole.format
        assert filling.nbytes == found.nbytes == whole.nbytes
        assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in found.tensors().items())


def test_what_does_not_compress_keeps_its_16_bits() -> None:
    """Also where the first rows did."""
    w = torch.cat([trained(320, 64), scattered(320, 64)])
    filling = new_filling(BF12(), *w.shape, dtype=torch.bfloat16)
    filling.put(0, w[:320])
    assert filling.beyond_bytes <= 4 * w.numel() // RARE
    filling.put(320, w[320:])
    found = filling.finish(torch.bfloat16)
    assert found.format == BF16()
    assert found.nbytes == w.nbytes
    assert filling.beyond_bytes == w.nbytes - BF12().num_bytes(*w.shape)
    assert same(found, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_are_rounded_as_bf16_rounds_them(dtype: torch.dtype) -> None:
    w = torch.randn(40, 70, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert same(pack_matrix(BF12(), w, torch.bfloat16), w.bfloat16())


def test_codes_are_those_of_bf16() -> None:
    """What one of the two wrote the other reads, on disk it is the same."""
    w = trained(40, 70)
    codes = CodedMatrix(BF16(), {"values": w}, 70, torch.bfloat16)
    assert BF12().same_codes(BF16())
    assert BF16().same_codes(BF12())
    assert not BF12().same_codes(parse_format("fp16"))
    assert BF12().read_as == BF16()
    filling = new_filling(BF12(), 40, 70, dtype=torch.bfloat16)
    filling.put(0, codes)
    assert same(filling.finish(torch.bfloat16), w)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_no_number_is_refused(bad: float) -> None:
    from pagoda.core.errors import WeightsError

    w = trained(33, 64)
    w[20, 5] = bad
    with pytest.raises(WeightsError, match="infinite or not a number"):
        pack_matrix(BF12(), w, torch.bfloat16)


def test_bytes_are_twelve_bits() -> None:
    assert BF12().num_bytes(4864, 896) == 4864 * 896 * 3 // 2 + 4864 // 16 * 12


def test_who_takes_it_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAGODA_ISA", raising=False)
    flags = {"avx2", "avx512f", "avx512_bf16"}
    assert isa_of(flags) == ""
    tiles = flags | {"amx_tile", "amx_bf16", "amx_int8"}
    assert isa_of(tiles) == "amx"
    for isa in ("", "base", "avx2", "avx512bf16", "avx512bf16slow", "amx"):
        name = "bf12" if prefers_bf12(isa) else "bf16"
        assert str(in_panels("bfloat16", isa=isa)) == name
        assert str(in_panels("float32", isa=isa)) == "fp32"
    monkeypatch.setenv("PAGODA_ISA", "avx2")
    assert isa_of(tiles) == "", "less was asked for"
