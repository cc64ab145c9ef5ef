"""The likeliest tokens by the kernels: those of a whole sort, on shapes, equals and forbidden tokens at random."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels import cpu_rows

from .isas import ISAS

INF = float("inf")


def sorted_whole(logits: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = logits.sort(dim=1, descending=True, stable=True)
    return found.values[:, :width], found.indices[:, :width]


@pytest.mark.parametrize("isa", ISAS)
def test_they_are_those_of_a_stable_sort(isa) -> None:
    rng = torch.Generator().manual_seed(3)
    for _ in range(60):
        rows, count = (int(torch.randint(1, most, (), generator=rng)) for most in (4, 9000))
        width = min(count, int(torch.randint(1, 1200, (), generator=rng)))
        logits = torch.randn(rows, count, generator=rng) * 10.0 ** float(torch.randint(-1, 3, (), generator=rng))
        if torch.rand((), generator=rng) < 0.4:
            logits = logits.round()  # many equals
        if torch.rand((), generator=rng) < 0.4:
            logits[torch.rand(rows, count, generator=rng) < 0.99] = -INF
        values, ids = cpu_rows.likeliest(logits, width, isa)
        expected = sorted_whole(logits, width)
        assert torch.equal(values, expected[0])
        assert torch.equal(ids, expected[1]), (rows, count, width)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("place", [0, 700, 1023, 1024, 2999])
def test_a_row_with_a_nan_says_so_first_and_no_other(isa, place) -> None:
    logits = torch.randn(3, 3000)
    logits[1, place] = float("nan")
    values, ids = cpu_rows.likeliest(logits, 20, isa)
    assert values[:, 0].isnan().tolist() == [False, True, False]
    assert ids.min() >= 0
    assert ids.max() < 3000
    expected = sorted_whole(logits[::2], 20)
    assert torch.equal(ids[::2], expected[1])
