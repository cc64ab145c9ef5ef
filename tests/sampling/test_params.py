"""What a request may say, what is refused, and how the model's defaults come in."""

from __future__ import annotations

import dataclasses
import math
import pickle
import subprocess
import sys

import pytest

from pagoda.core.errors import ConfigError, RequestError
from pagoda.sampling.params import SamplingParams

NAN, INF = math.nan, math.inf

REFUSED = [
    ("max_tokens", [0, -1, 1.0, True, "5", 2**40]),
    ("min_tokens", [-1, 257, 0.5, None, False]),
    ("temperature", [-0.1, NAN, INF, -INF, 101, True, "1", None]),
    ("top_k", [-2, 1.5, True, None, "50"]),
    ("top_p", [-0.01, 1.01, NAN, INF, None, True]),
    ("min_p", [-0.01, 1.01, NAN, None]),
    ("typical_p", [0.0, 1.01, NAN, None]),
    ("repetition_penalty", [0.0, -1.0, NAN, INF, None, 1e9]),
    ("presence_penalty", [-2.1, 2.1, NAN, None, "0"]),
    ("frequency_penalty", [-2.1, 2.1, NAN, None]),
    ("seed", [1.0, True, 2**64, -(2**63) - 1, "7"]),
    ("structured", [{}, "[0-9]+", {"regex": "a"}, True]),
    ("closing", [{}, 3, (1, 2), True]),
    ("logit_bias", [[1], {"5": 1.0}, {-1: 1.0}, {1.0: 1.0}, {True: 1.0}, {1: NAN}, {1: INF}, {1: None}, {1: True}]),
    ("stop", ["", [""], [1], 5, ["a"] * 65, "x" * 1025, {"a": 1}, [None], b"x"]),
    ("stop_token_ids", [[-1], ["1"], 5, [True], [1.0], "12", list(range(1025)), {1: 2}]),
    ("ignore_eos", [1, 0, None, "yes"]),
    ("include_stop_in_output", [1, None]),
    ("skip_special_tokens", [0, None]),
    ("logprobs", [-1, 1025, True, 1.0]),
    ("prompt_logprobs", [-1, 1025, True]),
    ("n", [0, 257, True, 1.0, None]),
    ("best_of", [0, 257, True, 2.0]),
    ("beam_width", [0, 257, True, 2.0]),
    ("length_penalty", [NAN, INF, None, 11, True]),
    ("early_stopping", [1, 0, "always", None, ["never"]]),
    ("kv", ["", "  ", 5, True]),
    ("priority", [1.0, True, None, 2**40]),
]


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in REFUSED for value in values])
def test_refused_values_are_named(field, value):
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{field: value})
    message = str(caught.value)
    assert field in message
    assert "accepted" in message
    assert "\n" not in message
    assert len(message) < 250


def test_every_field_is_checked():
    assert {field for field, _ in REFUSED} == {field.name for field in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": None, "min_tokens": 10**6},
        {"temperature": 0},
        {"temperature": 1e-7},
        {"top_k": -1, "top_p": 0, "min_p": 1, "typical_p": 1},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1},
        {"logit_bias": {0: -INF, 5: 100}},
        {"stop": ["a", "b"], "stop_token_ids": (0, 3)},
        {"n": 2, "best_of": 4, "logprobs": 0},
        {"beam_width": 4, "n": 2, "length_penalty": -1.5, "early_stopping": "never", "temperature": 0.0},
        {"kv": "snapkv(budget=0.25)+int8", "priority": -3},
    ],
)
def test_accepted_values(given):
    params = SamplingParams(**given)
    assert all(getattr(params, name) == value for name, value in given.items() if name not in ("stop",))


def test_values_are_stored_in_one_form():
    params = SamplingParams(stop="x", stop_token_ids=[3, 3, 1], temperature=1, logit_bias={}, top_p=1)
    assert params.stop == ("x",)
    assert params.stop_strings == ("x",)
    assert params.stop_token_ids == (3, 1)
    assert type(params.temperature) is float
    assert params.logit_bias is None
    assert SamplingParams().stop_strings == ()


def test_later_changes_of_the_callers_objects_do_not_matter():
    bias, stops = {1: 1.0}, ["a"]
    params = SamplingParams(logit_bias=bias, stop=stops)
    bias[1] = NAN
    stops.append("")
    assert params.logit_bias == {1: 1.0}
    assert params.stop_strings == ("a",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2


def test_temperature_near_zero_is_greedy():
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(temperature=1e-6).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy
    assert not SamplingParams().is_greedy


def test_numbers_of_sequences_and_what_they_need():
    assert SamplingParams(n=3).num_sequences == 3
    assert SamplingParams(n=3, best_of=5).num_sequences == 5
    assert SamplingParams(beam_width=4, n=2).num_sequences == 4
    assert SamplingParams(n=3, best_of=5).needs_logprobs
    assert not SamplingParams(n=3, best_of=3).needs_logprobs
    assert SamplingParams(logprobs=0).needs_logprobs
    assert SamplingParams(frequency_penalty=0.1).has_penalties
    assert not SamplingParams(logit_bias={1: 2.0}).has_penalties


def test_best_of_below_n_is_refused():
    with pytest.raises(ConfigError, match=r"best_of=2: accepted is an integer in \[3, 256\]"):
        SamplingParams(n=3, best_of=2)


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"typical_p": 0.9},
        {"seed": 1},
        {"best_of": 4},
        {"stop": "x"},
        {"logprobs": 1},
        {"n": 5},
    ],
)
def test_beam_search_excludes_sampling(other):
    with pytest.raises(ConfigError, match=f"{next(iter(other))}="):
        SamplingParams(beam_width=4, **other)


@pytest.mark.parametrize("field", [{"length_penalty": 0.5}, {"early_stopping": True}])
def test_beam_fields_without_beams_are_refused(field):
    with pytest.raises(ConfigError, match="beam_width"):
        SamplingParams(**field)


DEFAULTS = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05, "do_sample": True}


def test_unset_fields_take_the_models_defaults():
    merged = SamplingParams(top_p=1.0, max_tokens=5).merged_with(DEFAULTS | {"max_length": 9, "eos_token_id": 2})
    assert (merged.temperature, merged.top_k, merged.top_p, merged.repetition_penalty) == (0.6, 20, 1.0, 1.05)
    assert merged.max_tokens == 5
    assert merged.unset_fields() == frozenset()
    assert merged.merged_with({"temperature": 0.1}) == merged


def test_without_defaults_the_written_ones_hold_and_are_plain_numbers():
    params = SamplingParams()
    assert params.unset_fields() == {"temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"}
    merged = params.merged_with({"temperature": None})
    assert merged == params
    assert type(merged.temperature) is float
    assert type(merged.top_k) is int


def test_a_value_equal_to_the_default_counts_as_set():
    assert SamplingParams(temperature=1.0).merged_with(DEFAULTS).temperature == 1.0
    assert SamplingParams(top_k=0).merged_with(DEFAULTS).top_k == 0


def test_do_sample_false_means_greedy_unless_the_caller_samples():
    defaults = {"do_sample": False, "temperature": 0.9}
    assert SamplingParams(seed=3).merged_with(defaults).is_greedy
    assert SamplingParams(top_p=0.9).merged_with(defaults).temperature == 0.9
    assert SamplingParams(temperature=0.5).merged_with(defaults).temperature == 0.5


def test_beam_search_takes_only_the_penalty():
    merged = SamplingParams(beam_width=2).merged_with(DEFAULTS)
    assert (merged.temperature, merged.top_k, merged.repetition_penalty) == (1.0, 0, 1.05)


def test_bad_defaults_are_blamed_on_the_model():
    with pytest.raises(ConfigError, match="generation_config: top_p=7"):
        SamplingParams().merged_with({"top_p": 7})


def test_ids_outside_the_vocabulary():
    SamplingParams(stop_token_ids=[99], logit_bias={99: 1.0}).check_vocabulary(100)
    with pytest.raises(RequestError, match=r"stop_token_ids names token 100; .* 0 to 99"):
        SamplingParams(stop_token_ids=[100]).check_vocabulary(100)
    with pytest.raises(RequestError, match="logit_bias names token 500"):
        SamplingParams(logit_bias={1: 1.0, 500: 1.0}).check_vocabulary(100)


def test_copies_keep_what_is_unset():
    params = pickle.loads(pickle.dumps(SamplingParams(top_p=0.5)))
    assert params == SamplingParams(top_p=0.5)
    assert "top_p" not in params.unset_fields()
    assert "temperature" in dataclasses.replace(params, max_tokens=3).unset_fields()


def test_decisions_need_no_torch():
    names = ("params", "state", "stop", "finish", "beam", "ranking", "scratch")
    modules = ", ".join(f"pagoda.sampling.{name}" for name in names)
    code = f"import {modules}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
