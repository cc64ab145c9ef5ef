"""Stored rows into panels in one pass: the bytes of the plain twin (`packed.lay_out`)."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.lay_out import STORED, can_lay_out, lay_out_rows, panel_bytes
from pagoda.kernels.packed import lay_out
from pagoda.kernels.packed_bytes import BITS, GROUPS, PANEL
from pagoda.weights.formats._bits import pack_bits

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")

SHAPES = [(16, 64), (32, 2048), (1, 1), (17, 3), (5, 130), (48, 1023), (33, 7)]


def stored(format: str, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as checkpoints have them, and as the plain twin takes them."""
    generator = torch.Generator().manual_seed(rows * cols)
    if STORED[format].is_floating_point:
        weight = torch.randn(rows, cols, generator=generator).to(STORED[format])
        return weight, weight
    low, high = {"int8": (-128, 128), "int4": (0, 16), "int5": (0, 32), "ternary": (0, 3), "nf4": (0, 16)}[format]
    codes = torch.randint(low, high, (rows, cols), generator=generator)
    if format == "ternary":
        return pack_bits(codes.to(torch.uint8), 2), codes - 1
    packed = codes.to(torch.int8) if format == "int8" else pack_bits(codes.to(torch.uint8), BITS[format])
    return packed, codes


@pytest.mark.parametrize("format", STORED)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_the_same_bytes_as_the_plain_twin(format: str, rows: int, cols: int) -> None:
    found, codes = stored(format, rows, cols)
    options = {"scales": torch.ones(rows)} if format in ("int8", "ternary", "fp8") else {}
    if format in GROUPS:
        group = GROUPS[format][0]
        groups = torch.ones(rows, -(-cols // group))
        options = {"scales": groups, "zeros": None if format == "nf4" else groups, "group": group}
    wanted = lay_out(format, codes, **options).data
    panels = torch.full_like(wanted[0], 77)
    assert can_lay_out(format, found)
    assert lay_out_rows(format, found, panels)
    assert torch.equal(panels, wanted[0])
    assert panels.nbytes == panel_bytes(format, rows, cols) == wanted.shape[1] * wanted.shape[2] * PANEL * 4


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16", "fp8"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("at", [(0, 0), (18, 6), (3, 5)])
def test_what_is_no_number_is_seen(format: str, value: float, at: tuple[int, int]) -> None:
    weight = torch.full((19, 7), -torch.finfo(STORED[format]).max)
    panels = lay_out(format, weight, torch.ones(19)).data[0].clone()
    assert lay_out_rows(format, weight.to(STORED[format]), panels)
    weight[at] = torch.nan if format == "fp8" else value  # e4m3 has no infinity
    assert not lay_out_rows(format, weight.to(STORED[format]), panels)


def test_several_threads_write_what_one_does() -> None:
    """Pieces of 2 MiB: several of whole panels, and a last one that ends inside a panel."""
    weight = torch.randn(1500, 2050, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    one, three = (torch.zeros(94, 1025, PANEL * 4, dtype=torch.uint8) for _ in range(2))
    assert lay_out_rows("bf16", weight, one)
    assert lay_out_rows("bf16", weight, three, num_threads=3)
    assert torch.equal(one, three)
    weight[1490, 7] = float("nan")
    assert not lay_out_rows("bf16", weight, three, num_threads=3)


def test_what_it_does_not_take() -> None:
    assert not can_lay_out("int8", torch.zeros(4, 4, dtype=torch.uint8))
    assert not can_lay_out("bf16", torch.zeros(4, 4))
    assert not can_lay_out("fp32", torch.zeros(4, 4).T[:, :2])
