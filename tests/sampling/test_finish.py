"""End of sequence, stop ids and length, and which of them is reported."""

from __future__ import annotations

import pytest

from pagoda.core.types import FinishReason
from pagoda.sampling.finish import Finish, FinishRule
from pagoda.sampling.params import SamplingParams
from pagoda.sampling.ranking import best_sequences

EOS = (2, 3)


def rule(prompt_len=10, max_model_len=100, **fields) -> FinishRule:
    return FinishRule(SamplingParams(**fields), EOS, prompt_len=prompt_len, max_model_len=max_model_len)


def test_ends_and_their_causes():
    check = rule(max_tokens=5, stop_token_ids=[7]).check
    assert check(2, 1) == Finish(FinishReason.STOP, "eos")
    assert check(3, 4) == Finish(FinishReason.STOP, "eos")
    assert check(7, 1) == Finish(FinishReason.STOP, "stop_token", 7)
    assert check(8, 4) is None
    assert check(8, 5) == Finish(FinishReason.LENGTH, "max_tokens")
    assert check(2, 5) == Finish(FinishReason.STOP, "eos")
    assert Finish.at_stop_string("x") == Finish(FinishReason.STOP, "stop_string", "x")


def test_ignore_eos_but_not_stop_ids():
    check = rule(ignore_eos=True, stop_token_ids=[3]).check
    assert check(2, 1) is None
    assert check(3, 1) == Finish(FinishReason.STOP, "stop_token", 3)


def test_min_tokens_come_first():
    check = rule(min_tokens=3, stop_token_ids=[7]).check
    assert [check(token, 3) for token in (2, 7)] == [None, None]
    assert check(7, 4) is not None
    assert check(2, 4) is not None


@pytest.mark.parametrize(
    ("fields", "limit", "cause"),
    [
        ({"max_tokens": None}, 90, "context"),
        ({"max_tokens": 500}, 90, "context"),
        ({"max_tokens": 90}, 90, "max_tokens"),
        ({"max_tokens": 1}, 1, "max_tokens"),
    ],
)
def test_length(fields, limit, cause):
    check = rule(**fields)
    assert check.limit == limit
    assert check.check(8, limit - 1) is None
    assert check.check(8, limit) == Finish(FinishReason.LENGTH, cause)


def test_best_sequences():
    assert best_sequences([-3.0, -1.0, -2.0, -1.0], 3) == [1, 3, 2]
    assert best_sequences([-3.0], 1) == [0]
