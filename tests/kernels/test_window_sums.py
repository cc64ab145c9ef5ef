"""What slots receive from the newest queries, by every instruction set, against what policies are shown by layers."""

from __future__ import annotations

import pytest
import torch

from pagoda.kernels.case import Make
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops.read_slots import reference as read_slots
from pagoda.kv.policies._inputs import Inputs

from .isas import ISAS

cpu = pytest.importorskip("pagoda.kernels.cpu_slots")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("most", "window", "group", "dim"), [(1, 1, 1, 4), (37, 9, 3, 24), (200, 32, 7, 64)])
def test_every_instruction_set_sums_what_policies_are_shown(
    isa: str, most: int, window: int, group: int, dim: int, dtype: torch.dtype
) -> None:
    layers, heads, make = 2, 2, Make()
    layout, width = PageLayout(16, dim, 8, torch.bfloat16), -(-most // 16)
    pages = make.pages(layers * heads * width, layout)
    rows = make.permutation(layers * heads * width).view(-1, width)
    lens = make.ints([[most, max(1, most - 5)], [most, most]], torch.int64)
    num_seen = most + 20
    places = torch.randperm(num_seen, generator=torch.Generator().manual_seed(most))
    positions = places[:most].sort().values.expand(layers, heads, most).contiguous()
    queries = make.normal(layers, window, heads * group, dim).to(dtype)

    def read(layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        mine = rows[layer * heads : (layer + 1) * heads]
        return read_slots(pages, layout, mine, torch.zeros(heads, dtype=torch.int64), most)

    shown = Inputs(num_seen, num_seen, 0, lens, positions=positions, newest=queries, scale=0.2, read=read)
    received, wanted, largest = cpu.window_sums(
        pages, layout, rows, lens, positions, queries, num_seen, scale=0.2, isa=isa
    )
    torch.testing.assert_close(received, shown.received, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(largest, shown.largest, rtol=1e-5, atol=1e-5)
    assert (wanted != shown.wanted).sum() <= 2, "but for what is at the mean itself"
    assert shown.wanted.sum() > 0


def test_the_most_that_a_query_gave_is_not_told_from_sums() -> None:
    """Where attention summed up what slots receive, no query is left to ask."""
    summed = torch.ones(2, 3, 5)
    shown = Inputs(9, 9, 0, torch.full((2, 3), 5), positions=torch.zeros(2, 3, 5), summed={"received": summed})
    assert shown.received is summed
    with pytest.raises(AssertionError, match="recent queries were not declared as a need"):
        _ = shown.largest
