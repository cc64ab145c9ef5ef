"""bfloat16 in twelve bits: every bit comes back, products have the bits of bf16's, C++ writes what the twin writes."""

import pytest
import torch

from pagoda.kernels import bf12
from pagoda.kernels.lay_out import lay_out_bf12
from pagoda.kernels.ops import packed_embedding
from pagoda.kernels.packed import PANEL, PackedWeight, lay_out, unpack
from pagoda.kernels.packed_bytes import data_shape, packed_nbytes

from .isas import ISAS, cpu

SHAPES = [(16, 64), (33, 64), (200, 300), (80, 1), (70, 1100), (64, 2048), (1, 7), (5, 130)]
KINDS = ["plain", "zeros", "outliers", "wide", "same"]


def weight(rows: int, cols: int, kind: str = "plain") -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * cols)
    found = torch.randn(rows, cols, generator=generator) * 0.02
    flat = found.view(-1)
    if kind == "zeros":
        flat[::3], flat[1::50], flat[7::90] = 0, -0.0, 1e-39  # the last is denormal
    elif kind == "outliers":
        flat[::97] *= 1e-7
        flat[3::501] *= 1e6
    elif kind == "wide":  # exponents of all sizes: nearly every weight is an exception
        found = torch.ldexp(found, torch.randint(-100, 100, found.shape, generator=generator))
    elif kind == "same":
        found = torch.full_like(found, -1.5)
    return found.bfloat16()


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_bit_comes_back(shape: tuple[int, int], kind: str) -> None:
    wanted = weight(*shape, kind)
    assert torch.equal(bits(unpack(lay_out("bf12", wanted))), bits(wanted))
    stack = torch.stack([wanted, wanted.flip(0), wanted * 2])
    assert torch.equal(bits(unpack(lay_out("bf12", stack))), bits(stack))


def test_what_it_takes() -> None:
    packed = lay_out("bf12", weight(512, 2048))
    exceptions = packed.scales.numel() - bf12.RECORD * packed.num_panels
    assert 0 < exceptions < 512 * 2048 / 4000
    assert packed.data.shape == (1, *data_shape("bf12", packed.num_panels, 2048))
    assert (
        packed.nbytes
        == packed_nbytes("bf12", 512, 2048) + 4 * exceptions
        < 0.752 * lay_out("bf16", weight(512, 2048)).nbytes
    )


def test_zeros_cost_nothing() -> None:
    found = weight(64, 512, "zeros")
    packed = lay_out("bf12", found)
    assert packed.scales.numel() - bf12.RECORD * packed.num_panels < found.numel() / 1000


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "amx"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bytes_by_every_instruction_set(shape: tuple[int, int], kind: str, isa: str) -> None:
    rows = weight(*shape, kind)
    wanted = lay_out("bf12", rows)
    panels = torch.full_like(wanted.data[0], 77)
    finite, *found = lay_out_bf12(rows, panels, 2, isa)
    assert finite
    assert torch.equal(panels, wanted.data[0])
    assert torch.equal(bf12.joined(*found), wanted.scales)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_no_number_is_seen(value: float) -> None:
    rows = weight(19, 70)
    panels = torch.empty(data_shape("bf12", 2, 70), dtype=torch.uint8)
    assert lay_out_bf12(rows, panels)[0]
    rows[18, 6] = value
    assert not lay_out_bf12(rows, panels)[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_have_the_bits_of_bf16(kind: str, dtype: torch.dtype, isa: str) -> None:
    for rows, cols in (*SHAPES, (96, 2500)):
        found = weight(rows, cols, kind).nan_to_num()
        short, plain = lay_out("bf12", found), lay_out("bf16", found)
        x = torch.randn(300, cols, generator=torch.Generator().manual_seed(1)).to(dtype)
        for tokens in (1, 2, 13, 16, 17, 32, 33, 70, 300):
            got, wanted = (cpu.packed_linear(x[:tokens], packed, isa=isa) for packed in (short, plain))
            assert torch.equal(got, wanted), (rows, cols, tokens)
        wide = [cpu.packed_linear(x[:5], packed, isa=isa, wide=True) for packed in (short, plain)]
        assert torch.equal(*wide)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_an_embedding(dtype: torch.dtype, kind: str) -> None:
    for rows, cols in SHAPES:
        found = weight(rows, cols, kind)
        ids = torch.arange(rows).flip(0)
        assert torch.equal(packed_embedding(ids, lay_out("bf12", found), dtype), found[ids].to(dtype))


def test_experts_of_a_stack_have_their_own_windows() -> None:
    found = torch.stack([weight(40, 96, kind) * 2.0 ** (20 * n) for n, kind in enumerate(KINDS[:3])])
    stack = lay_out("bf12", found)
    assert stack.experts == 3
    assert stack.scales is not None
    for expert in range(3):
        alone = lay_out("bf12", found[expert])
        assert torch.equal(stack.data[expert], alone.data[0])
    panels = stack.num_panels * stack.experts
    assert torch.equal(
        bits(bf12.decode(stack.data.flatten(0, 1), stack.scales, 48)).view(3, -1),
        bits(lay_out("bf16", found).data.view(torch.bfloat16)).view(3, -1),
    )
    assert stack.scales.numel() >= bf12.RECORD * panels


def test_a_window_may_be_read_from_any_record() -> None:
    """Records count from themselves, so a stack's later experts need no beginning of all."""
    found = weight(64, 512, "outliers")
    packed = lay_out("bf12", found)
    assert packed.scales is not None
    later = PackedWeight("bf12", 32, 512, packed.data[:, 2:], packed.scales[bf12.RECORD * 2 :])
    x = torch.randn(3, 512)
    assert torch.equal(cpu.packed_linear(x, later), cpu.packed_linear(x, lay_out("bf12", found[2 * PANEL :])))
