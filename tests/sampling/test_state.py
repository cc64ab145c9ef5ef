"""What the sampler remembers: a function of prompt and output, whichever way it came about."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.sampling.params import SamplingParams
from pagoda.sampling.state import SampleState

REPETITION = SamplingParams(repetition_penalty=1.2, presence_penalty=0.5)
PRESENCE = SamplingParams(presence_penalty=0.5)
IDS = st.lists(st.integers(0, 60), max_size=80)


def contents(state):
    ids, counts = state.penalized()
    assert len(set(ids.tolist())) == len(ids)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@given(prompt=IDS, output=IDS)
def test_tally_of_prompt_and_output(prompt, output):
    state = SampleState(REPETITION, prompt)
    for token_id in output:
        state.accept(token_id)
    expected = dict.fromkeys(prompt, 0) | Counter(output)
    assert contents(state) == expected
    assert contents(SampleState(REPETITION, prompt, output_ids=output)) == expected
    assert contents(SampleState(PRESENCE, prompt, output_ids=output)) == Counter(output)
    assert state.num_output == len(output)


def test_rows_without_penalties_keep_nothing():
    state = SampleState(SamplingParams(), range(1000))
    state.accept(4)
    assert state.penalized() is None
    assert state.num_output == 1


@pytest.mark.parametrize("params", [REPETITION, SamplingParams()])
def test_fork_is_independent(params):
    state = SampleState(params, [1, 2], seed=9, index=0, eos_ids=[3], output_ids=[5] * 40)
    twin = state.fork(index=4)
    twin.accept(6)
    assert (state.index, twin.index, state.fork().index) == (0, 4, 0)
    assert (twin.seed, twin.end_ids) == (9, (3,))
    assert (state.num_output, twin.num_output) == (40, 41)
    if params is REPETITION:
        assert 6 not in contents(state)
        assert contents(twin) == {1: 0, 2: 0, 5: 40, 6: 1}


def test_end_ids():
    params = SamplingParams(stop_token_ids=[7, 3], min_tokens=2)
    state = SampleState(params, [1], eos_ids=[3, 4])
    assert state.end_ids == (3, 4, 7)
    assert [state.forbids_ending, state.accept(1), state.forbids_ending, state.accept(1), state.forbids_ending] == [
        True,
        None,
        True,
        None,
        False,
    ]
    ignoring = SamplingParams(ignore_eos=True, min_tokens=2)
    assert SampleState(ignoring, [1], eos_ids=[3]).end_ids == ()
    assert not SampleState(ignoring, [1], eos_ids=[3]).forbids_ending
