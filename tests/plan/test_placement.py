"""The placement program against brute force, and against placements that can be worked out by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.core.errors import BudgetError
from pagoda.plan.placement import Item, Tier, place


def test_what_fits_the_nearest_tier_stays_there() -> None:
    found = place([Item("weights", 100), Item("kv", 50)], [Tier("host", 150), Tier("disk", 1000, 1.0, 1.0)], 0.5)
    assert found.shares == {"weights": {"host": 1.0, "disk": 0.0}, "kv": {"host": 1.0, "disk": 0.0}}
    assert found.seconds == 0.5


def test_two_tiers_by_hand() -> None:
    """100 bytes of weights, room for 60 of them and no buffers: 40 come over a link of 20 bytes a second."""
    found = place([Item("weights", 100)], [Tier("host", 60), Tier("disk", 1000, 20.0, 20.0)], 0.5)
    assert found.share("weights", "disk") == pytest.approx(0.4)
    assert found.seconds == pytest.approx(2.0)


def test_what_is_read_least_lies_farthest() -> None:
    items = [Item("weights", 100), Item("kv", 100, read_share=0.1)]
    found = place(items, [Tier("host", 100), Tier("disk", 1000, 20.0, 20.0)], 0.1)
    assert found.share("kv", "disk") == pytest.approx(1.0)
    assert found.share("weights", "host") == pytest.approx(1.0)


def test_a_codec_of_the_cold_tier_counts_its_bytes() -> None:
    tiers = [Tier("host", 0), Tier("disk", 60, 30.0, 30.0)]
    found = place([Item("kv", 100, shrink=(1.0, 0.5))], tiers, 0.1)
    assert found.seconds == pytest.approx(50 / 30)
    with pytest.raises(BudgetError, match=r"kv 100 B do not fit into host 0 B, disk 60 B together"):
        place([Item("kv", 100)], tiers, 0.1)


def test_buffers_take_room_where_something_lies_beyond() -> None:
    found = place([Item("weights", 100, piece=10)], [Tier("host", 60), Tier("disk", 1000, 20.0, 20.0)], 0.1)
    assert found.share("weights", "host") == pytest.approx(0.4)


def test_writes_count_against_their_own_rate() -> None:
    tiers = [Tier("host", 0), Tier("disk", 1000, 100.0, 10.0)]
    assert place([Item("kv", 100, write_share=0.5)], tiers, 0.1).seconds == pytest.approx(5.0)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    reads=st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)),
    rooms=st.tuples(st.integers(0, 40), st.integers(0, 60)),
    rates=st.tuples(st.floats(1, 50), st.floats(1, 50)),
)
def test_no_grid_point_is_better(
    sizes: tuple[int, int], reads: tuple[float, float], rooms: tuple[int, int], rates: tuple[float, float]
) -> None:
    """Shares in tenths over three tiers, all of them: none gives a shorter step, and what is found keeps the rules."""
    items = [Item("a", sizes[0], read_share=reads[0]), Item("b", sizes[1], read_share=reads[1])]
    tiers = [Tier("device", rooms[0]), Tier("host", rooms[1], rates[0], 1.0), Tier("disk", 100, rates[1], 1.0)]
    found = place(items, tiers, 0.01)
    tenths = [(i, j, 10 - i - j) for i in range(11) for j in range(11 - i)]
    best = float("inf")
    for one, two in itertools.product(tenths, tenths):
        held = [(sizes[0] * one[t] + sizes[1] * two[t]) / 10 for t in range(3)]
        if held[0] <= rooms[0] and held[1] <= rooms[1]:
            far = reads[0] * sizes[0] * one[2] / 10 + reads[1] * sizes[1] * two[2] / 10
            near = far + reads[0] * sizes[0] * one[1] / 10 + reads[1] * sizes[1] * two[1] / 10
            best = min(best, max(0.01, near / rates[0], far / rates[1]))
    assert found.seconds <= best * (1 + 1e-6)
    for at, tier in enumerate(tiers):
        held_here = sum(item.num_bytes * found.share(item.name, tier.name) for item in items)
        assert held_here <= (rooms[at] if at < 2 else 100) + 1e-6
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in found.shares.values())
