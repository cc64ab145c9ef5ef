"""The placement program against brute force, and against placements that can be worked out by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.core.errors import BudgetError
from pagoda.plan.placement import Item, Phase, Tier, Use, place

FAR = Tier("disk", 1000, 20.0, 20.0)


def step(seconds: float, **uses: Use) -> Phase:
    return Phase("decode", seconds, uses)


def test_what_fits_the_nearest_tier_stays_there() -> None:
    phase = step(0.5, weights=Use(), kv=Use(near=0.25))
    found = place([Item("weights", 100), Item("kv", 50)], [Tier("host", 150), FAR], [phase])
    assert found.shares == {"weights": {"host": 1.0, "disk": 0.0}, "kv": {"host": 1.0, "disk": 0.0}}
    assert found.seconds == {"decode": 0.75}
    assert found.waits_for == {"decode": "computing"}


def test_two_tiers_by_hand() -> None:
    """100 bytes of weights, room for 60 of them and no buffers: 40 come over a link of 20 bytes a second."""
    found = place([Item("weights", 100)], [Tier("host", 60), FAR], [step(0.5, weights=Use())])
    assert found.share("weights", "disk") == pytest.approx(0.4)
    assert found.seconds["decode"] == pytest.approx(2.0)
    assert found.waits_for["decode"] == "reading from disk"


def test_what_is_read_least_lies_farthest() -> None:
    items = [Item("weights", 100), Item("kv", 100)]
    found = place(items, [Tier("host", 100), FAR], [step(0.1, weights=Use(), kv=Use(read=0.1))])
    assert found.share("kv", "disk") == pytest.approx(1.0)
    assert found.share("weights", "host") == pytest.approx(1.0)


def test_a_codec_of_the_cold_tier_counts_its_bytes() -> None:
    tiers = [Tier("host", 0), Tier("disk", 60, 30.0, 30.0)]
    phases = [step(0.1, kv=Use())]
    found = place([Item("kv", 100, shrink=(1.0, 0.5))], tiers, phases)
    assert found.seconds["decode"] == pytest.approx(50 / 30)
    with pytest.raises(BudgetError, match=r"kv 100 B do not fit into host 0 B, disk 60 B together"):
        place([Item("kv", 100)], tiers, phases)


def test_buffers_take_room_where_something_lies_beyond() -> None:
    items, phases = [Item("weights", 100, piece=10), Item("kv", 30, piece=5)], [step(0.1, weights=Use())]
    found = place(items, [Tier("host", 60), FAR], phases)
    assert found.share("weights", "host") == pytest.approx(0.3)
    assert found.share("kv", "disk") == 1.0, "its two buffers of 5 instead of its 30; nobody reads it"


def test_writes_count_against_their_own_rate() -> None:
    tiers = [Tier("host", 0), Tier("disk", 1000, 100.0, 10.0)]
    found = place([Item("kv", 100)], tiers, [step(0.1, kv=Use(write=0.5))])
    assert found.seconds["decode"] == pytest.approx(5.0)
    assert found.waits_for["decode"] == "writing to disk"


def test_whole_layers_only() -> None:
    """Room for 2.4 of 4 layers is room for two."""
    found = place([Item("weights", 100, parts=4)], [Tier("host", 60), FAR], [step(0.5, weights=Use())])
    assert found.share("weights", "disk") == pytest.approx(0.5)
    found = place([Item("kv", 100, parts=1)], [Tier("host", 99), FAR], [step(0.5, kv=Use(read=0.1))])
    assert found.share("kv", "disk") == 1.0, "all or nothing"


def test_some_may_not_go_far() -> None:
    items = [Item("weights", 80, farthest=0), Item("kv", 60)]
    found = place(items, [Tier("host", 100), FAR], [step(0.1, weights=Use(read=0.0), kv=Use())])
    assert found.share("weights", "host") == 1.0
    assert found.share("kv", "disk") == pytest.approx(2 / 3)
    with pytest.raises(BudgetError, match="do not fit"):
        place([Item("weights", 101, farthest=0)], [Tier("host", 100), FAR], [step(0.1)])


def test_kv_is_used_where_it_lies_when_that_is_sooner_than_fetching_it() -> None:
    """200 bytes over a link of 20 take 10 s; the host's own attention takes 3, the device's 1 for what it has."""
    tiers = [Tier("device", 100), Tier("host", 1000, 20.0, 20.0)]
    use = Use(near=1.0, there={1: 4.0})
    found = place([Item("weights", 100), Item("kv", 200)], tiers, [step(0.0, weights=Use(), kv=use)])
    # with w of the weights on the host: kv there 1 - w/2, of which u is used there: 1 + 3 u = 5 w + 10 (1 - w/2 - u)
    assert found.seconds["decode"] == pytest.approx(1 + 3 * 9 / 13)
    assert sum(found.used_there["decode"]["kv"].values()) == pytest.approx(9 / 13)
    slow = Use(near=1.0, there={1: 100.0})
    there = place([Item("weights", 100), Item("kv", 200)], tiers, [step(0.0, weights=Use(), kv=slow)])
    assert sum(there.used_there["decode"].get("kv", {}).values()) < 0.1


def test_activations_push_weights_out_when_a_prompt_moves_them_most() -> None:
    """Of 100 bytes of room, 60 of activations cross the link 8 times a prompt's step, 80 of weights once every step:
    with many tokens to answer the weights stay, with one they make room.
    """
    items = [Item("weights", 80), Item("activations", 60)]
    tiers = [Tier("device", 100), Tier("host", 1000, 20.0, 20.0)]
    prompt = {"weights": Use(), "activations": Use(read=8.0, write=8.0)}
    few, many = (
        place(items, tiers, [Phase("prompt", 1.0, prompt), Phase("decode", 0.1, {"weights": Use()}, steps)])
        for steps in (1.0, 1000.0)
    )
    assert few.share("activations", "device") == pytest.approx(1.0)
    assert many.share("weights", "device") == pytest.approx(0.975), "2 bytes come while a token is computed"
    assert many.seconds["prompt"] == pytest.approx(38 * 8 / 20 + 2 / 20)
    assert few.total == pytest.approx(few.seconds["prompt"] + few.seconds["decode"])


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    reads=st.tuples(st.floats(0.1, 1), st.floats(0.1, 4)),
    there=st.floats(0.0, 3.0),
    rooms=st.tuples(st.integers(0, 40), st.integers(0, 60)),
    rates=st.tuples(st.floats(1, 50), st.floats(1, 50)),
    steps=st.integers(1, 50),
)
def test_no_grid_point_is_better(sizes, reads, there, rooms, rates, steps: int) -> None:  # type: ignore[no-untyped-def]
    """Shares in quarters over three tiers, all of them, used there or fetched: none gives shorter steps, one item in
    whole quarters or not; and what is found keeps the rules.
    """
    items = [Item("a", sizes[0], parts=4), Item("b", sizes[1])]
    tiers = [Tier("device", rooms[0]), Tier("host", rooms[1], rates[0], 2.0), Tier("disk", 100, rates[1], 3.0)]
    uses = [
        {"a": Use(read=reads[0]), "b": Use(read=0.0, write=0.5)},
        {"a": Use(read=1.0), "b": Use(read=reads[1], near=0.2, there={1: 0.2 + there})},
    ]
    phases = [Phase("prompt", 0.3, uses[0]), Phase("decode", 0.01, uses[1], float(steps))]
    found = place(items, tiers, phases)
    quarters = [(i, j, 4 - i - j) for i in range(5) for j in range(5 - i)]
    best = float("inf")
    for one, two in itertools.product(quarters, quarters):
        held = [(sizes[0] * one[t] + sizes[1] * two[t]) / 4 for t in range(3)]
        if held[0] > rooms[0] or held[1] > rooms[1]:
            continue
        for used in range(two[1] + 1):
            total = 0.0
            for phase in phases:
                a, b = phase.uses["a"], phase.uses["b"]
                near = a.read * sizes[0] * (one[1] + one[2]) + b.read * sizes[1] * (two[1] - used + two[2])
                far = a.read * sizes[0] * one[2] + b.read * sizes[1] * two[2]
                computing = phase.seconds + b.near + (there * used / 4 if b.there else 0.0)
                written = b.write * sizes[1] * (two[1] + two[2]) / 4 / 2, b.write * sizes[1] * two[2] / 4 / 3
                total += phase.steps * max(computing, near / 4 / rates[0], far / 4 / rates[1], *written)
            best = min(best, total)
    assert found.total <= best * (1 + 1e-5)
    for at, tier in enumerate(tiers):
        held_here = sum(item.num_bytes * found.share(item.name, tier.name) for item in items)
        assert held_here <= (rooms[at] if at < 2 else 100) + 1e-5
    assert all(sum(shares.values()) == pytest.approx(1.0) for shares in found.shares.values())
    assert all(abs(4 * share - round(4 * share)) < 1e-5 for share in found.shares["a"].values()), "whole parts"
