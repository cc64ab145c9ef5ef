"""Reading or computing: each side of where the two cost the same, by tier, and measured again after a bad moment."""

from __future__ import annotations

import pytest

from pagoda.kv.swap_cost import RETRY, SwapCost

BLOCK_BYTES, PAGE_SIZE = 1000, 16


def cost(**blocks_per_second: float) -> SwapCost:
    """With measured rates of tiers, in blocks."""
    found = SwapCost(BLOCK_BYTES, PAGE_SIZE)
    for where, rate in blocks_per_second.items():
        found.note(where, 10, 10 / rate)
    return found


def test_the_side_of_the_crossing_decides() -> None:
    """100 blocks a second from the disk are 1600 tokens a second."""
    for count in (1, 7, 1000):
        assert not cost(disk=100).computing_is_faster({"disk": count}, 1599.0)
        assert cost(disk=100).computing_is_faster({"disk": count}, 1601.0)


def test_what_is_not_measured_is_read() -> None:
    assert not SwapCost(BLOCK_BYTES, PAGE_SIZE).computing_is_faster({"disk": 5}, 1e9)
    assert not cost(disk=1e-3).computing_is_faster({"disk": 5}, 0.0)
    assert not cost(disk=1e-3).computing_is_faster({"host": 1}, 1e9)
    assert not cost(disk=100).computing_is_faster({}, 1e9)


def test_tiers_have_rates_of_their_own() -> None:
    """90 blocks at 1000 a second and 10 at 50 take 0.29 s: computing them at 5517 tokens a second takes as long."""
    mixed = {"host": 90, "disk": 10}
    assert not cost(host=1000, disk=50).computing_is_faster(mixed, 5500)
    assert cost(host=1000, disk=50).computing_is_faster(mixed, 5600)
    assert not cost(host=1000, disk=50).computing_is_faster({"host": 100}, 5600)


def test_rates_follow_and_nothing_read_tells_nothing() -> None:
    found = cost(disk=100)
    found.note("disk", 0, 5.0)
    assert found.bytes_per_second["disk"] == pytest.approx(100 * BLOCK_BYTES)
    for _ in range(20):
        found.note("disk", 10, 10 / 400)
    assert found.bytes_per_second["disk"] == pytest.approx(400 * BLOCK_BYTES, rel=0.01)


def test_a_rate_of_a_bad_moment_does_not_stay() -> None:
    slow = cost(disk=0.001)
    asked = [slow.computing_is_faster({"disk": 1}, 1000.0) for _ in range(2 * RETRY)]
    assert asked.count(False) == 2
    assert not asked[RETRY - 1]
