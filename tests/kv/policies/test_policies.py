"""The text behind ``kv=``: what reads, what is refused, and with which words."""

from __future__ import annotations

import pytest

from pagoda.core.errors import ConfigError
from pagoda.core.types import Granularity
from pagoda.kv.grammar import parse_policy
from pagoda.kv.policies import POLICIES
from pagoda.kv.policies.base import PolicyInputs


def inputs(length: int, *, layers: int = 2, heads: int = 3, seed: int = 0, prompt_len: int = 40) -> PolicyInputs:
    return PolicyInputs(layers, heads, [[length] * heads] * layers, length, prompt_len, seed, lambda layer: None)  # type: ignore[arg-type,return-value]


def test_names_and_parameters() -> None:
    assert parse_policy("exact").exact
    assert parse_policy("recent(budget=7)") == POLICIES.get("recent")(budget=7)  # type: ignore[operator]
    assert parse_policy(" random( budget = 0.25 ) + exact").budget == 0.25  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("snapkw", "accepted: exact, random, recent"),
        ("recent(budgt=3)", "no parameter 'budgt'; accepted: budget"),
        ("recent(budget='3')", "expected int or float"),
        ("recent(budget=0)", "whole number from 1"),
        ("recent(budget=1.5)", "budget <= 1.0"),
        ("recent(3)", "does not read"),
        ("recent(budget=", "does not read"),
        ("recent(**{})", "key=value"),
        ("recent(budget=open)", "not a number"),
        ("recent+random", "both evict"),
        ("exact(a=1)", "no parameters"),
        ("", "does not read"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", POLICIES.names())
def test_every_policy_keeps_its_budget_and_repeats_itself(name: str) -> None:
    policy = POLICIES.get(name)()  # type: ignore[operator]
    first = policy.select(inputs(33), policy.new_state())
    assert first == policy.select(inputs(33), policy.new_state())
    if policy.exact:
        assert first is None
        assert policy.granularity is Granularity.SEQUENCE
        return
    for slots in first.values():
        assert len(slots) == 20
        assert list(slots) == sorted(set(slots))
        assert slots[-1] == 32
    assert not policy.select(inputs(20), policy.new_state())


def test_random_differs_by_head_and_by_seed() -> None:
    policy = parse_policy("random(budget=10)")
    kept = policy.select(inputs(33), None)
    assert kept is not None
    assert kept[0, 0] != kept[1, 2]
    assert kept != policy.select(inputs(33, seed=1), None)
