"""What ``benchmarks.kv_overhead`` takes for the twin of a method, and what it makes of both."""

from __future__ import annotations

from benchmarks.kv_overhead import EVERY_METHOD, Part, Run, cells, twin_of

from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES


def test_every_method_is_measured() -> None:
    assert {name for kv in EVERY_METHOD for name in parse_policy(kv).names} == set(POLICIES.names()) - {"exact"}


def test_a_twin_holds_as_many_slots_and_is_shown_nothing() -> None:
    assert twin_of("h2o") == "random(budget=0.25, every=32)"
    assert twin_of("scope(budget=0.5)") == "random(budget=0.5, every=16)"
    assert twin_of("snapkv(budget=64)+ada") == "exact"
    for blind in ("streaming_llm", "razor_attention", "keydiff", "quest", "zipcache", "int8", "exact"):
        assert twin_of(blind) is None, blind
    for kv in EVERY_METHOD:
        if (twin := twin_of(kv)) is not None and twin != "exact":
            mine, its = parse_policy(kv), parse_policy(twin)
            assert its.eviction is not None
            assert not its.needs
            for seen in (400, 432, 464):
                assert mine.most_slots(seen, 400) == its.most_slots(seen, 400), kv


def test_shares() -> None:
    """Of steps of 2 s after prompts of 6 s; attention takes 0.16 s longer than the twin's in prompts, 0.2 in steps."""
    mine = Run(Part(6.0, 0.6, 1.16, 0.16, 0.0), Part(2.0, 0.2, 0.8, 0.04, 0.02), 9)
    twin = Run(Part(5.0, 0.0, 1.0, 0.0, 0.0), Part(1.7, 0.1, 0.6, 0.0, 0.0), 9)
    assert cells("h2o", [mine], [twin]) == ["10.0%", "10.0%", "10.0%", "4.5%", "2.0%", "2.5%", "1.0%"]
    # Nothing is shown after its act.
    assert cells("snapkv", [mine], [twin]) == ["10.0%", "10.0%", "0.0%", "2.0%", "2.0%", "2.5%", "1.0%"]
    assert cells("quest", [mine], []) == ["10.0%", "10.0%", "", "", "2.0%", "2.5%", "1.0%"]
