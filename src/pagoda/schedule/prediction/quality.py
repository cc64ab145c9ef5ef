"""How good a prediction is for scheduling: whether it puts requests in the right order."""

from __future__ import annotations

from collections import Counter
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


def kendall(predicted: Sequence[float], actual: Sequence[float]) -> float:
    """Kendall's tau-b in [-1, 1]: of pairs that differ on both sides, those in the same order less those that are not,
    over the geometric mean of the pairs that differ on each; 0.0 where one side is constant.

    Raises ValueError as ``rank_correlation`` does. O(n log n): the discordant pairs are the inversions of a merge sort
    (Knight 1966).
    """
    if len(predicted) != len(actual) or len(actual) < 2:
        raise ValueError(f"{len(predicted)} predictions for {len(actual)} lengths; give the same number, at least 2")
    pairs = sorted(zip(predicted, actual, strict=True))
    total = len(pairs) * (len(pairs) - 1) // 2
    tied_x, tied_y, tied = _tied(predicted), _tied(actual), _tied(pairs)
    if total in (tied_x, tied_y):
        return 0.0
    _, discordant = _inversions([y for _, y in pairs])
    agreeing = total - tied_x - tied_y + tied - 2 * discordant
    return float(agreeing / ((total - tied_x) * (total - tied_y)) ** 0.5)


def _tied(values: Sequence[object]) -> int:
    return sum(n * (n - 1) // 2 for n in Counter(values).values())


def _inversions(values: list[float]) -> tuple[list[float], int]:
    """The values sorted, and how many pairs were the wrong way round."""
    if len(values) < 2:
        return values, 0
    middle = len(values) // 2
    (left, a), (right, b) = _inversions(values[:middle]), _inversions(values[middle:])
    merged, count, i = list[float](), a + b, 0
    for value in right:
        while i < len(left) and left[i] <= value:
            merged.append(left[i])
            i += 1
        count += len(left) - i
        merged.append(value)
    return merged + left[i:], count


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
