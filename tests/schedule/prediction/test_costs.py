"""Costs of tokens, learned from steps; the probe; Kendall's tau; predictors on disk."""

from __future__ import annotations

from itertools import combinations
from math import log1p
from pathlib import Path
from random import Random

import pytest

from pagoda.core.errors import ModelError
from pagoda.schedule.counting import Stream
from pagoda.schedule.item import Scheduled
from pagoda.schedule.prediction.costs import MIN_STEPS, StepCosts
from pagoda.schedule.prediction.probe import Probe
from pagoda.schedule.prediction.quality import kendall
from pagoda.schedule.prediction.ranker import NUM_NEAR, PRIOR, Ranker
from pagoda.schedule.prediction.trained import read_trained, write_trained


def step(num_prompt: int, num_decodes: int) -> list[Scheduled]:
    decodes = [Scheduled(Stream(i, 10), 9, 1) for i in range(num_decodes)]
    return [*decodes, Scheduled(Stream(99, 500), 0, num_prompt)] if num_prompt else decodes


def test_costs_follow_the_steps_and_share_out_the_base() -> None:
    """Steps of 10 ms, 1 ms a prompt token, 2 ms a decode; 5 decodes a step on average."""
    costs, random = StepCosts(prompt=1.0, token=1.0), Random(1)
    for number in range(400):
        n, m = random.choice((0, 50, 200)), 4 + number % 3
        costs.note(step(n, m), 0.01 + 0.001 * n + 0.002 * m)
        if number == MIN_STEPS - 2:
            assert (costs.prompt, costs.token) == (1.0, 1.0)
    assert costs.prompt == pytest.approx(0.001, rel=0.02)
    assert costs.token == pytest.approx(0.002 + 0.01 / 5, rel=0.05)
    assert costs.work(100, 10) == pytest.approx(0.14, rel=0.05)


def test_steps_that_are_all_alike_teach_no_nonsense() -> None:
    costs = StepCosts()
    for _ in range(200):
        costs.note(step(0, 4), 0.02)
    assert costs.prompt >= 0
    assert costs.token == pytest.approx(0.005, rel=0.3)


def test_a_probe_learns_while_it_serves() -> None:
    random, probe = Random(2), Probe([0.0] * 3, [1.0] * 3, [0.0] * 3, 3.0, rate=0.5)
    for _ in range(400):
        hidden = [random.gauss(0, 1) for _ in range(3)]
        probe.observe(hidden, round(20 * 2 ** hidden[1]))
    assert probe.length([0, 1, 0]) == pytest.approx(40, rel=0.2)
    assert probe.length([0, -1, 0]) == pytest.approx(10, rel=0.3)
    again = Probe.of(probe.as_dict())
    assert again.length([0.3, 1, 2]) == probe.length([0.3, 1, 2])
    assert probe.length([0, 1e6, 0]) < 2e6  # bounded, whatever a state may be
    with pytest.raises(ValueError, match="equally long"):
        Probe([0.0], [1.0], [], 1.0)


def test_a_ranker_says_what_scores_mean_in_tokens_and_is_kept() -> None:
    ranker = Ranker()
    assert ranker.expected([1]) == PRIOR
    for number in range(300):
        ranker.observe([7 if number % 2 else 9] * 4, 200 if number % 2 else 10)
    assert ranker.expected([7] * 4) > 150 > 30 > ranker.expected([9] * 4)
    again = Ranker.of(ranker.as_dict())
    assert again.expected([7] * 4) == pytest.approx(ranker.expected([7] * 4), rel=0.1)
    with pytest.raises(ValueError, match="weights"):
        Ranker.of({"weights": [1.0], "scored": []})
    assert len(ranker.as_dict()["scored"]) > NUM_NEAR


def test_kendall_is_what_counting_pairs_says() -> None:
    random = Random(3)
    x, y = ([float(random.randrange(8)) for _ in range(60)] for _ in range(2))
    signs = [((a > b) - (a < b)) * ((c > d) - (c < d)) for (a, c), (b, d) in combinations(zip(x, y, strict=True), 2)]
    untied = [sum(a != b for a, b in combinations(side, 2)) for side in (x, y)]
    assert kendall(x, y) == pytest.approx(sum(signs) / (untied[0] * untied[1]) ** 0.5)
    assert kendall([1, 2, 3], [log1p(v) for v in (1, 2, 3)]) == 1.0
    assert kendall([1, 2, 3], [3, 2, 1]) == -1.0
    assert kendall([1, 1], [1, 2]) == 0.0


def test_what_was_trained_lies_beside_the_model(tmp_path: Path) -> None:
    assert read_trained(tmp_path, "trail") is None
    path = write_trained(tmp_path, "trail", {"bias": 1.0}, {"n": 3})
    assert read_trained(tmp_path, "trail") == {"bias": 1.0}
    path.write_text('{"policy": "sjf"}')
    with pytest.raises(ModelError, match="run it again"):
        read_trained(tmp_path, "trail")
