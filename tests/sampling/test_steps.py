"""The single steps against transformers' logits processors, and where ours are stricter: ties and sums."""

from __future__ import annotations

import math

import pytest
import torch
from transformers.generation import logits_process as hf

from pagoda.sampling.steps.draw import draw
from pagoda.sampling.steps.logit_bias import logit_bias
from pagoda.sampling.steps.min_p import min_p
from pagoda.sampling.steps.min_tokens import min_tokens
from pagoda.sampling.steps.output_penalties import output_penalties
from pagoda.sampling.steps.repetition_penalty import repetition_penalty
from pagoda.sampling.steps.temperature import temperature
from pagoda.sampling.steps.top_k import top_k
from pagoda.sampling.steps.top_p import top_p
from pagoda.sampling.steps.typical import typical

VOCAB = 400


def rows():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(VOCAB, generator=generator) * spread for spread in (0.3, 1.0, 3.0, 8.0) for _ in range(5)]


FILTERS = [
    *[(f"top_k={k}", lambda x, k=k: top_k(x, k), hf.TopKLogitsWarper(k)) for k in (1, 5, 399, 400)],
    *[(f"top_p={p}", lambda x, p=p: top_p(x, p), hf.TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 0.99)],
    *[(f"min_p={p}", lambda x, p=p: min_p(x, p), hf.MinPLogitsWarper(p)) for p in (0.01, 0.3, 1.0)],
    *[(f"typical={p}", lambda x, p=p: typical(x, p), hf.TypicalLogitsWarper(p)) for p in (0.1, 0.5, 0.95)],
]


@pytest.mark.parametrize(("ours", "theirs"), [f[1:] for f in FILTERS], ids=[f[0] for f in FILTERS])
def test_filters_keep_what_transformers_keeps(ours, theirs):
    for row in rows():
        assert torch.equal(ours(row), theirs(None, row[None].clone())[0])


def test_filters_off_change_nothing():
    row = rows()[0]
    for off in (top_k(row, 0), top_k(row, -1), top_p(row, 1.0), min_p(row, 0.0), typical(row, 1.0)):
        assert torch.equal(off, row)


def test_ties_with_the_last_kept_are_kept():
    row = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    kept = [1, 2, 3, 4]
    for filtered in (top_k(row, 2), top_p(row, 0.6), min_p(row, math.exp(-1.0))):
        assert filtered.isfinite().nonzero()[:, 0].tolist() == kept


def test_top_p_zero_is_the_likeliest():
    assert top_p(torch.tensor([0.0, 2.0, 1.0]), 0.0).isfinite().tolist() == [False, True, False]


@pytest.mark.parametrize("penalty", [0.8, 1.5])
def test_repetition_penalty_of_transformers(penalty):
    seen = [3, 7, 7, 399, 0]
    for row in rows():
        theirs = hf.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), row[None].clone())[0]
        assert torch.equal(repetition_penalty(row, seen, penalty), theirs)


def test_output_penalties_of_the_openai_formula():
    row = rows()[3]
    out = output_penalties(row, [5, 5, 9], frequency=0.5, presence=0.25)
    change = (out - row).nonzero()[:, 0].tolist()
    assert change == [5, 9]
    torch.testing.assert_close(row[5] - out[5], torch.tensor(0.5 * 2 + 0.25))
    torch.testing.assert_close(row[9] - out[9], torch.tensor(0.75))


def test_bias_and_minimum_length():
    row = rows()[0]
    out = logit_bias(row, {1: 2.5, 4: -math.inf})
    assert out[1] == row[1] + 2.5
    assert out[4] == -math.inf
    out = min_tokens(row, [2, 3])
    assert out.isinf().nonzero()[:, 0].tolist() == [2, 3]


@pytest.mark.parametrize("value", [1e-5, 0.5, 1.0, 100.0])
def test_temperature(value):
    for row in rows():
        ours = temperature(row, value)
        assert ours.max() == 0.0
        torch.testing.assert_close(ours.softmax(-1), (row.double() / value).softmax(-1).float())


def test_inputs_are_not_changed():
    row = rows()[0]
    before = row.clone()
    for step in (
        lambda x: top_p(x, 0.5),
        lambda x: logit_bias(x, {1: 1.0}),
        lambda x: min_tokens(x, [1]),
        lambda x: repetition_penalty(x, [1], 2.0),
        lambda x: output_penalties(x, [1], 1.0, 1.0),
    ):
        step(row)
        assert torch.equal(row, before)


def test_draw_is_the_inverse_of_the_cumulative_distribution():
    logits = torch.tensor([-math.inf, 0.1, 0.2, -math.inf, 0.7, -math.inf])
    logits[[1, 2, 4]] = logits[[1, 2, 4]].log()
    picks = [draw(logits, u) for u in (1e-17, 0.05, 0.0999, 0.1001, 0.2999, 0.3001, 1.0 - 2.0**-53)]
    assert picks == [1, 1, 1, 2, 2, 4, 4]
