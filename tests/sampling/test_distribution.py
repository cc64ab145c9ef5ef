"""Drawn tokens have the probabilities that the definition gives: chi-square against plain Python in float64.

Seeds are fixed, so the outcome is too. The expected probabilities are computed here from the papers' definitions, token
by token, by code that shares nothing with the package.
"""

from __future__ import annotations

import math

import pytest
import torch

from pagoda.sampling import chain
from pagoda.sampling.params import SamplingParams
from pagoda.sampling.sampler import Sampler
from pagoda.sampling.state import SampleState

VOCAB = 300
DRAWS = 6000
PROMPT, OUTPUT = [4, 4, 9], [7, 7, 11]


def logits_row() -> list[float]:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(VOCAB, generator=generator) * 1.5).tolist()


def normalized(weights: dict[int, float]) -> dict[int, float]:
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def smallest_set(probs: dict[int, float], order: list[int], mass: float) -> dict[int, float]:
    kept: dict[int, float] = {}
    for token in order:
        if kept and math.fsum(kept.values()) >= mass:
            break
        kept[token] = probs[token]
    return normalized(kept)


def expected_probs(logits: list[float], params: SamplingParams) -> dict[int, float]:
    edited = [value + (params.logit_bias or {}).get(token, 0.0) for token, value in enumerate(logits)]
    for token in {*PROMPT, *OUTPUT}:
        r = params.repetition_penalty
        edited[token] = edited[token] * r if edited[token] < 0 else edited[token] / r
    for token in set(OUTPUT):
        edited[token] -= params.frequency_penalty * OUTPUT.count(token) + params.presence_penalty
    probs = normalized({token: math.exp(value / params.temperature) for token, value in enumerate(edited)})
    if params.top_k > 0:
        probs = normalized(dict(sorted(probs.items(), key=lambda item: -item[1])[: params.top_k]))
    if params.top_p < 1.0:
        probs = smallest_set(probs, sorted(probs, key=lambda token: -probs[token]), params.top_p)
    if params.min_p > 0.0:
        floor = params.min_p * max(probs.values())
        probs = normalized({token: prob for token, prob in probs.items() if prob >= floor})
    if params.typical_p < 1.0:
        entropy = -math.fsum(prob * math.log(prob) for prob in probs.values())
        order = sorted(probs, key=lambda token: abs(-math.log(probs[token]) - entropy))
        probs = smallest_set(probs, order, params.typical_p)
    return probs


def chi_square(counts: dict[int, int], probs: dict[int, float], draws: int) -> tuple[float, int]:
    """Statistic and degrees of freedom; tokens expected fewer than 5 times are taken together."""
    cells: list[tuple[float, int]] = [(p * draws, counts.get(t, 0)) for t, p in probs.items() if p * draws >= 5]
    rare = math.fsum(p * draws for p in probs.values() if p * draws < 5)
    if rare >= 5:
        cells.append((rare, sum(count for token, count in counts.items() if probs[token] * draws < 5)))
    return sum((seen - expected) ** 2 / expected for expected, seen in cells), len(cells) - 1


CASES = {
    "temperature=1": SamplingParams(temperature=1.0),
    "temperature=0.4": SamplingParams(temperature=0.4),
    "temperature=2.5": SamplingParams(temperature=2.5),
    "top_k=3": SamplingParams(top_k=3),
    "top_k=100": SamplingParams(top_k=100),
    "top_p=0.3": SamplingParams(top_p=0.3),
    "top_p=0.95": SamplingParams(top_p=0.95),
    "min_p=0.1": SamplingParams(min_p=0.1),
    "typical=0.2": SamplingParams(typical_p=0.2),
    "typical=0.9": SamplingParams(typical_p=0.9),
    "bias": SamplingParams(logit_bias={3: 4.0, 8: -2.0}),
    "penalties": SamplingParams(repetition_penalty=1.4, frequency_penalty=-1.2, presence_penalty=-0.7),
    "everything": SamplingParams(
        temperature=1.3,
        top_k=120,
        top_p=0.9,
        min_p=0.02,
        typical_p=0.8,
        repetition_penalty=0.8,
        presence_penalty=-1.0,
        logit_bias={3: 3.0},
    ),
}


@pytest.mark.parametrize("widths", [(8, 32), chain.WIDTHS], ids=["narrow", "usual"])
@pytest.mark.parametrize("name", CASES)
def test_drawn_tokens_follow_the_exact_distribution(name, widths, monkeypatch):
    monkeypatch.setattr(chain, "WIDTHS", widths)  # so that a small vocabulary takes the ways of a large one
    params, logits = CASES[name], logits_row()
    probs = expected_probs(logits, params)
    states = [SampleState(params, PROMPT, output_ids=OUTPUT, seed=1234, index=i) for i in range(DRAWS)]
    batch = torch.tensor(logits).repeat(DRAWS, 1)
    counts: dict[int, int] = {}
    for sampled in Sampler().sample(batch, states):
        counts[sampled.token_id] = counts.get(sampled.token_id, 0) + 1
    assert set(counts) <= set(probs)
    statistic, freedom = chi_square(counts, probs, DRAWS)
    assert statistic < freedom + 4.0 * math.sqrt(2 * max(freedom, 1)), f"chi2 {statistic:.1f} with {freedom} degrees"


def test_the_test_notices_a_wrong_distribution():
    """Power: a temperature 10 % off adds to the statistic, on average, more than the bound allows."""
    logits = logits_row()
    right, wrong = (expected_probs(logits, SamplingParams(temperature=t)) for t in (1.0, 1.1))
    counts = {token: round(prob * DRAWS) for token, prob in wrong.items()}
    statistic, freedom = chi_square(counts, right, DRAWS)
    assert statistic > 4.0 * math.sqrt(2 * freedom)
