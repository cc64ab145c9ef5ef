"""The counter-based random numbers: fixed for ever, and uniform."""

from __future__ import annotations

import math
from itertools import pairwise

from pagoda.sampling.uniform import uniform

GOLDEN = [0.07576086799311316, 0.7348330295852941, 0.6661956302172543, 0.4608642436583889, 0.4608642436583889]


def test_numbers_never_change():
    """A seed is a promise across versions; these values may not move."""
    assert [uniform(*counter) for counter in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (-1, 0, 0), (2**64 - 1, 0, 0))] == GOLDEN


def test_open_interval_and_independence_of_the_three_counters():
    numbers = [uniform(seed, index, pos) for seed in range(20) for index in range(10) for pos in range(20)]
    assert len(set(numbers)) == len(numbers)
    assert all(0.0 < number < 1.0 for number in numbers)


def test_uniform_by_chi_square_and_uncorrelated():
    numbers = [uniform(7, 0, position) for position in range(20_000)]
    counts = [0] * 50
    for number in numbers:
        counts[int(number * 50)] += 1
    chi2 = sum((count - 400) ** 2 / 400 for count in counts)
    assert chi2 < 49 + 4 * math.sqrt(2 * 49)
    lag = sum((a - 0.5) * (b - 0.5) for a, b in pairwise(numbers)) / len(numbers) * 12
    assert abs(lag) < 4 / math.sqrt(len(numbers))
