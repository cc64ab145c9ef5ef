"""Predicted output lengths: classes, conditioning on what is done, the window, the limit."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pagoda.schedule.counting import Stream
from pagoda.schedule.prediction.histogram import PRIOR, Histogram
from pagoda.schedule.prediction.quality import rank_correlation

TRACES = Path(__file__).parents[4] / "shared" / "data" / "traces"


def ended(prompt: int, output: int) -> Stream:
    return Stream(0, 0, prompt=range(prompt), num_output=output)


def test_a_prior_stands_in_until_answers_ended() -> None:
    histogram = Histogram()
    assert histogram.quantile(ended(10, 0), 0.5) == PRIOR
    assert histogram.quantile(ended(10, 500), 0.5) == 1000


def test_prompt_classes_are_apart_and_small_ones_borrow_from_all() -> None:
    histogram = Histogram()
    for _ in range(20):
        histogram.observe(ended(10, 5))
        histogram.observe(ended(1000, 300))
    assert histogram.quantile(ended(11, 0), 0.5) == 5
    assert histogram.quantile(ended(1020, 0), 0.5) == 300
    assert histogram.quantile(ended(100, 0), 0.9) == 300  # nobody of its class ended: half of all had 300


def test_what_was_generated_already_conditions_the_rest() -> None:
    histogram = Histogram()
    for length in range(1, 101):
        histogram.observe(ended(10, length))
    assert histogram.quantile(ended(10, 0), 0.5) == 51
    assert histogram.quantile(ended(10, 80), 0.5) == 91
    assert histogram.quantile(ended(10, 80), 0.0) == 81
    assert histogram.quantile(ended(10, 100), 0.5) == 200  # longer than all: it doubles


def test_old_answers_are_forgotten_and_the_clients_limit_holds() -> None:
    histogram = Histogram(size=10)
    for length in [500] * 10 + [7] * 10:
        histogram.observe(ended(10, length))
    assert histogram.quantile(ended(10, 0), 1.0) == 7
    limited = ended(10, 0)
    limited.max_output = 3
    assert histogram.quantile(limited, 1.0) == 3


def test_rank_correlation_is_that_of_the_ranks() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [9, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 2, 4], [1, 2, 2, 4]) == pytest.approx(1.0)
    assert rank_correlation([5, 5, 5], [1, 2, 3]) == 0.0
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="same number"):
        rank_correlation([1.0], [1.0])


def test_prompt_length_says_much_about_the_answer_in_real_conversations() -> None:
    path = TRACES / "azure_llm_2023_conv.csv.gz"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt") as lines:
        rows = [line.strip().split(",")[1:] for line in lines][1:4001]
    histogram, predicted, actual = Histogram(), [], []
    for prompt, output in rows:
        predicted.append(float(histogram.quantile(ended(int(prompt), 0), 0.5)))
        actual.append(float(output))
        histogram.observe(ended(int(prompt), int(output)))
    assert rank_correlation(predicted[500:], actual[500:]) > 0.7
