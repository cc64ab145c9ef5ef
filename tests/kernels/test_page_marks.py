"""Marks of pages: bit for bit what the plain ops make where no sum is taken, and near it where one is."""

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.ops.page_marks import CASES, MarkAids, reference
from pagoda.kernels.ops.page_scores import PageRule, _out_of_bytes, by_channel, in_128ths, unscaled

from .isas import ISAS, cpu

SHAPES = [(2, 3, 16, 64), (1, 1, 8, 20), (3, 2, 24, 33), (2, 1, 4, 128)]


def room_for(rule: PageRule, heads: int, pages: int, size: int, dim: int, parts: int) -> torch.Tensor:
    if rule.marks == "halves":
        return torch.zeros(heads, pages, parts, 2 * dim, dtype=torch.bfloat16)
    if rule.marks == "columns":
        return by_channel(heads, pages, dim + 2, size // 2)
    return torch.zeros(heads, pages, -(-dim // 4) * 4 + 1, size, dtype=torch.uint8)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["halves", "columns", "bytes"])
def test_corners_columns_and_bytes_are_the_same_to_the_bit(isa, kind):
    for heads, pages, size, dim in SHAPES:
        keys = Make().normal(heads, pages, size, dim, scale=3.0)
        rule = PageRule(kind, "split" if kind == "halves" else "plain", "product" if kind == "halves" else "peak")
        keys[0, 0, 0] = 0.0
        for parts in (1, size // 4):
            mine, wanted = (room_for(rule, heads, pages + 5, size, dim, parts) for _ in range(2))
            cpu.page_marks(keys, rule, mine, 2, isa=isa)
            reference(keys, rule, wanted, 2)
            assert torch.equal(mine, wanted), (heads, pages, size, dim, parts)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_makes_the_marks_of_the_reference(isa):
    for case in CASES:
        mine, wanted = case.make(Make()), case.make(Make())
        cpu.page_marks(**mine, isa=isa)
        reference(**wanted)
        torch.testing.assert_close(mine["marks"].float(), wanted["marks"].float(), rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "size", "width"), [(32, 16, 12), (20, 24, 8), (13, 8, 16), (64, 4, 4)])
def test_keys_are_projected_before_they_are_bytes(isa, dim, size, width):
    """As the definition does it, but for sums in another order: a byte more or less."""
    make = Make()
    keys, given = make.normal(2, 3, size, dim), in_128ths(make.normal(2, dim, width))
    rule = PageRule("bytes", "project")
    mine, wanted = (torch.zeros(2, 6, width + 1, size, dtype=torch.uint8) for _ in range(2))
    cpu.page_marks(keys, rule, mine, 2, MarkAids(given), isa=isa)
    reference(keys, rule, wanted, 2, MarkAids(given))
    assert not mine[:, :2].any()
    assert not mine[:, 5:].any()
    found, exact = _out_of_bytes(mine)[:, 2:5], keys @ unscaled(given)[:, None]
    largest = exact.abs().amax(-1, keepdim=True)
    step = largest * 1.126 / 127  # scales are an eighth apart
    assert ((found - exact).abs() <= step / 2).all()
    assert ((found - _out_of_bytes(wanted)[:, 2:5]).abs() <= step).all()


def test_a_key_is_turned_back_to_where_it_began():
    """However far on it was: angles are reduced in double."""
    freq, at = 0.5 ** torch.arange(8), 60_000
    still = Make().normal(1, 1, 4, 16)
    angle = (torch.arange(4 * at, 4 * at + 4, dtype=torch.float32)[:, None] * freq)[None, None]
    cos, sin = angle.double().cos().float(), angle.double().sin().float()
    a, b = still.chunk(2, -1)
    keys = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    marks = torch.zeros(1, at + 1, 1, 16)
    cpu.page_marks(keys, PageRule("rows", "turn"), marks, at, MarkAids(freq=freq))
    torch.testing.assert_close(marks[0, at, 0], still[0, 0].mean(0), rtol=1e-5, atol=1e-6)
