"""Sampling masks against the definitions, counted out token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.kernels.ops import min_p_mask, top_k_mask, top_p_mask, typical_mask

LOGITS = st.lists(st.one_of(st.floats(-8, 8, width=32), st.just(-math.inf)), min_size=6, max_size=6)
ROWS = st.lists(LOGITS.filter(lambda row: max(row) > -math.inf), min_size=1, max_size=4)
SHARES = st.sampled_from([0.05, 0.3, 0.5, 0.77, 0.95])


def probabilities(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def kept(tensor):
    return [{i for i, x in enumerate(row) if x > -math.inf} for row in tensor.tolist()]


def possible(row):
    return {i for i, x in enumerate(row) if x > -math.inf}


def near(a, b):
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 5))
def test_top_k(rows, k):
    got = kept(top_k_mask(torch.tensor(rows), torch.full((len(rows),), k)))
    for row, keep in zip(rows, got, strict=True):
        assert keep == {i for i in possible(row) if sum(other > row[i] for other in row) < k}


@settings(max_examples=100, deadline=None)
@given(ROWS, SHARES)
def test_top_p(rows, p):
    """The kept ones are the likeliest, reach p, and without the least of them would not."""
    got = kept(top_p_mask(torch.tensor(rows), torch.full((len(rows),), p)))
    for row, keep in zip(rows, got, strict=True):
        probs = probabilities(row)
        mass, least = sum(probs[i] for i in keep), min(probs[i] for i in keep)
        assert all(probs[i] <= least for i in range(len(row)) if i not in keep)
        assert mass > p or near(mass, p)
        assert mass - least < p or near(mass - least, p)


@settings(max_examples=100, deadline=None)
@given(ROWS, SHARES)
def test_min_p(rows, p):
    got = kept(min_p_mask(torch.tensor(rows), torch.full((len(rows),), p)))
    for row, keep in zip(rows, got, strict=True):
        probs = probabilities(row)
        for i in possible(row):
            if not near(probs[i], p * max(probs)):
                assert (i in keep) == (probs[i] > p * max(probs))


@settings(max_examples=100, deadline=None)
@given(ROWS, SHARES)
def test_typical(rows, p):
    """The kept ones are the nearest to the entropy; they reach p, and without the farthest of them would not."""
    got = kept(typical_mask(torch.tensor(rows), torch.full((len(rows),), p)))
    for row, keep in zip(rows, got, strict=True):
        probs = probabilities(row)
        entropy = -sum(x * math.log(x) for x in probs if x > 0)
        distance = {i: abs(-math.log(probs[i]) - entropy) for i in possible(row)}
        far = max(distance[i] for i in keep)
        assert all(distance[i] >= far or near(distance[i], far) for i in distance if i not in keep)
        mass = sum(probs[i] for i in keep)
        assert mass > p or near(mass, p)
        inner = sum(probs[i] for i in keep if distance[i] < far and not near(distance[i], far))
        assert inner < p or near(inner, p)


@pytest.mark.parametrize(
    ("mask", "off", "on"),
    [
        (top_k_mask, torch.tensor([0, -1, 50]), torch.tensor([0, 2, 50])),
        (top_p_mask, torch.tensor([1.0, 1.0, 1.5]), torch.tensor([1.0, 0.3, 1.0])),
        (min_p_mask, torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.9, 0.0])),
        (typical_mask, torch.tensor([1.0, 1.0, 1.5]), torch.tensor([1.0, 0.3, 1.0])),
    ],
)
def test_rows_that_are_off_stay_untouched(mask, off, on):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    assert torch.equal(mask(logits, off), before)
    mixed = mask(logits, on)
    assert torch.equal(mixed[[0, 2]], before[[0, 2]])
    assert (mixed[1] == -math.inf).any()
    assert torch.equal(mixed[1:2], mask(logits[1:2], on[1:2])), "a row alone gives the same"
    assert torch.equal(logits, before), "the input is not written"
