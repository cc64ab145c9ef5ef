"""The C++ bodies of norms, rotation, activations: every instruction set, widths that fill no register, any threads."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.ops import activation, gated_activation, layer_norm, rms_norm, rotary

from .isas import ISAS, cpu

LOOSE = {torch.float32: {"rtol": 1e-5, "atol": 2e-6}, torch.bfloat16: {"rtol": 8e-3, "atol": 1e-3}}


def rows(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 2.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1])) * scale).to(dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize("width", [1, 15, 33, 96])
def test_every_instruction_set(isa: str, dtype: torch.dtype, width: int) -> None:
    x, weight, bias = rows((3, width), dtype), rows((width,), dtype), rows((width,), dtype, 0.5)
    for got, expected in [
        (cpu.rms_norm(x, weight, 1e-6, isa=isa), rms_norm.__globals__["reference"](x, weight, 1e-6)),
        (cpu.layer_norm(x, weight, bias, 1e-5, isa=isa), layer_norm.__globals__["reference"](x, weight, bias, 1e-5)),
        (cpu.activation(x, "silu", isa), activation.__globals__["reference"](x, "silu")),
        (
            cpu.gated_activation(x, x + 1, "relu2", isa=isa),
            gated_activation.__globals__["reference"](x, x + 1, "relu2"),
        ),
    ]:
        torch.testing.assert_close(got, expected, **LOOSE[dtype])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_bit_equal_in_bfloat16(isa: str, interleaved: bool) -> None:
    q, k = rows((5, 3, 20), torch.bfloat16), rows((5, 1, 20), torch.bfloat16)
    angles = rows((5, 6), torch.float32)
    options = {"interleaved": interleaved, "rotary_dim": 12}
    for dtype in (torch.bfloat16, torch.float32):
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        expected = rotary.__globals__["reference"](q, k, cos, sin, **options)
        got = cpu.rotary(q, k, cos, sin, isa=isa, **options)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same numbers, signs of zero included; what is no number is none in both."""
    equal = one.view(torch.int16) == other.view(torch.int16)
    return bool((equal | (one.isnan() & other.isnan())).all())


@pytest.mark.parametrize("isa", ISAS)
def test_every_bfloat16_is_turned_as_torch_does(isa: str) -> None:
    """Infinities, denormal numbers and what is no number beside usual ones; 70 pairs end inside a register."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    q, k = torch.cat([every, every.flip(0)[:64]])[: 140 * 468].reshape(156, 3, 140), rows((156, 1, 140), torch.bfloat16)
    angles = rows((156, 70), torch.float32)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    expected = rotary.__globals__["reference"](q, k, cos, sin)
    got = cpu.rotary(q, k, cos, sin, isa=isa)
    assert all(same_bits(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [64, 90, 160])
def test_a_norm_of_small_integers_has_the_bits_of_torch(isa: str, width: int) -> None:
    """Their squares add up exactly in any order, so that nothing but the roundings behind is left.

    One row has an infinity, one what is no number.
    """
    x, weight = (rows((6, width), torch.bfloat16)).round().clamp(-3, 3), rows((width,), torch.bfloat16)
    x[1, 3], x[2, width - 1] = float("inf"), float("nan")
    scale = 1.0 / (x.float().square().sum(1, keepdim=True) / width + 1e-6).sqrt()
    expected = (x.float() * scale).bfloat16() * weight
    assert same_bits(cpu.rms_norm(x, weight, 1e-6, isa=isa), expected)
    assert expected[[0, 3, 4, 5]].isfinite().all()


def test_a_row_does_not_depend_on_its_batch_mates_or_on_threads() -> None:
    x, weight = rows((64, 900), torch.float32), rows((900,), torch.float32)
    whole = cpu.rms_norm(x, weight, 1e-6)
    assert all(torch.equal(cpu.rms_norm(x[i : i + 1], weight, 1e-6)[0], whole[i]) for i in (0, 31, 63))
    torch.set_num_threads(3)
    try:
        assert torch.equal(cpu.rms_norm(x, weight, 1e-6), whole)
    finally:
        torch.set_num_threads(1)


def test_silu_of_every_bfloat16() -> None:
    """Rounded as the exact value is, but for a few that lie between two numbers; what is no number stays none."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    got, ones = cpu.activation(x, "silu"), torch.ones_like(x)
    assert torch.equal(cpu.gated_activation(x, ones, "silu").view(torch.int16), got.view(torch.int16))
    assert torch.equal(cpu.activation(x[7:], "silu").view(torch.int16), got[7:].view(torch.int16))
    assert torch.equal(got.isnan(), x.isnan())
    usual = (x.abs() > 1e-30) & (x > -80) & (x < 1e30)
    exact = torch.nn.functional.silu(x[usual].double())
    assert ((got[usual].double() - exact).abs() <= exact.abs() * 2**-8).all()
    assert (got[usual] != exact.bfloat16()).float().mean() < 1e-3


def test_extremes_stay_finite_or_nan_as_in_torch() -> None:
    x = torch.tensor([[-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, float("nan")]])
    for kind in ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu"):
        expected = activation.__globals__["reference"](x, kind)
        torch.testing.assert_close(cpu.activation(x, kind), expected, rtol=1e-5, atol=1e-6, equal_nan=True)
