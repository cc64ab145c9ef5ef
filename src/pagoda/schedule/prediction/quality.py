"""How good a prediction is for scheduling: whether it puts requests in the right order."""

from __future__ import annotations

from collections.abc import Sequence


def rank_correlation(predicted: Sequence[float], actual: Sequence[float]) -> float:
    """Spearman's rho in [-1, 1], ties sharing their mean rank; 0.0 where one side is constant.

    Raises ValueError for sides of different length or fewer than two pairs.
    """
    if len(predicted) != len(actual) or len(actual) < 2:
        raise ValueError(f"{len(predicted)} predictions for {len(actual)} lengths; give the same number, at least 2")
    x, y = _ranks(predicted), _ranks(actual)
    mean = (len(x) - 1) / 2
    covariance = sum((a - mean) * (b - mean) for a, b in zip(x, y, strict=True))
    spread = sum((a - mean) ** 2 for a in x) * sum((b - mean) ** 2 for b in y)
    return float(covariance / spread**0.5) if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for position in range(start, end):
            ranks[order[position]] = (start + end - 1) / 2
        start = end
    return ranks
