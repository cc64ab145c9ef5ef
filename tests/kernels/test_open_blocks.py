"""Blocks of GGUF files by the C++ extension: the numbers of the plain twin (`weights.gguf_blocks`), to the last bit."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.open_blocks import KINDS, can_open, open_rows, split_q4_0
from pagoda.weights.gguf_blocks import OPENERS, open_blocks, plain_int4_codes

pytest.importorskip("pagoda.kernels.cpu", reason="needs the C++ extension")


def blocks(kind: str, rows: int = 3, count: int = 40) -> torch.Tensor:
    """Bytes of anything, but for scales: some are so small that halves lose their leading one."""
    size = OPENERS[kind][0]
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (rows * count, size), generator=generator, dtype=torch.uint8)
    halves = {"Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2), "Q5_1": (0, 2)}.get(kind, (0,))
    for at in halves:
        scale = torch.randn(len(raw), 1, generator=generator) * torch.tensor([1.0, 1e-6]).repeat(len(raw) // 2)[:, None]
        raw[:, at : at + 2] = scale.half().view(torch.uint8)
    return raw.view(rows, count * size)


def test_every_kind_has_its_opener() -> None:
    assert set(KINDS) == set(OPENERS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_numbers_of_the_plain_twin(kind: str, dtype: torch.dtype) -> None:
    raw = blocks(kind)
    wanted = open_blocks(raw, kind).to(dtype)
    found = open_rows(raw, kind, OPENERS[kind][0], wanted.shape[1], dtype)
    assert can_open(raw)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7FFF, 0x7E00])
def test_scales_that_are_no_numbers_stay_none(bits: int) -> None:
    raw = blocks("Q8_0", 1, 2)
    raw[0, :2] = torch.tensor([bits & 255, bits >> 8], dtype=torch.uint8)
    raw[0, 2:34] = 1
    for dtype in (torch.float32, torch.bfloat16):
        found = open_rows(raw, "Q8_0", 34, 64, dtype)
        assert not found[0, :32].isfinite().any()
        assert found[0, 32:].isfinite().all()


def test_q4_0_is_int4_in_groups_of_32() -> None:
    raw = blocks("Q4_0")
    wanted = plain_int4_codes(raw)
    codes, scale = split_q4_0(raw)
    assert torch.equal(codes, wanted["codes"])
    assert torch.equal(scale, wanted["scale"])


def test_what_it_does_not_take() -> None:
    raw = blocks("Q8_0")
    assert not can_open(raw[:, ::2])
    assert not can_open(raw.float())
