"""A linear ranker: which of two prompts gets the longer answer, learned pair by pair from answers that ended.

Efficient LLM Scheduling by Learning to Rank (https://arxiv.org/abs/2408.15792) shows that the order of lengths is
enough for scheduling and easier to learn than lengths. There a small language model is the ranker (ListMLE); here a
linear model over hashed tokens with a pairwise logistic loss, cheap enough to learn while it serves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from math import exp, log2
from typing import Any

NUM_TAIL, NUM_HEAD = 48, 16  # tokens of the prompt that are looked at
NUM_WEIGHTS = 4096
NUM_PAIRS = 8  # recent answers that a new one is compared with
NUM_SCORED, NUM_NEAR, PRIOR = 256, 16, 128  # scores whose lengths are known; of them asked for one; with none at all

Features = tuple[tuple[int, float], ...]


class Ranker:
    """``score`` is larger for prompts with longer answers; only differences mean anything."""

    def __init__(self, rate: float = 0.2) -> None:
        self._rate = rate
        self._weights = [0.0] * NUM_WEIGHTS
        self._recent = deque[tuple[Features, int]](maxlen=NUM_PAIRS)
        self._scored, self._by_score = deque[tuple[float, int]](), list[tuple[float, int]]()

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Ranker:
        """From plain data, as ``as_dict`` gave it. Raises KeyError, TypeError or ValueError."""
        ranker = cls()
        if len(data["weights"]) != NUM_WEIGHTS:
            raise ValueError(f"{len(data['weights'])} weights, not {NUM_WEIGHTS}")
        ranker._weights = [float(w) for w in data["weights"]]
        for score, length in data["scored"]:
            ranker._note(float(score), int(length))
        return ranker

    def as_dict(self) -> dict[str, Any]:
        """Plain data; what it compares new answers with is not in it."""
        return {"weights": [round(w, 6) for w in self._weights], "scored": [list(pair) for pair in self._scored]}

    def score(self, prompt: Sequence[int]) -> float:
        """Cost: ``NUM_TAIL + NUM_HEAD`` hashed tokens, whatever the prompt's length."""
        return self._score(features(prompt))

    def expected(self, prompt: Sequence[int]) -> int:
        """Tokens of the answer: the mean of the ``NUM_NEAR`` known ones whose scores are nearest."""
        if len(self._by_score) < NUM_NEAR:
            return PRIOR
        first = bisect_left(self._by_score, (self.score(prompt), 0)) - NUM_NEAR // 2
        first = max(0, min(first, len(self._by_score) - NUM_NEAR))
        return round(sum(length for _, length in self._by_score[first : first + NUM_NEAR]) / NUM_NEAR)

    def observe(self, prompt: Sequence[int], num_output: int) -> None:
        """The answer to ``prompt`` had ``num_output`` tokens: one step of descent for each recent answer beside it."""
        mine = features(prompt)
        for other, length in self._recent:
            if length != num_output:
                longer, shorter = (mine, other) if num_output > length else (other, mine)
                self._learn(longer, shorter)
        self._recent.append((mine, num_output))
        self._note(self._score(mine), num_output)

    def _note(self, score: float, length: int) -> None:
        if len(self._scored) == NUM_SCORED:
            del self._by_score[bisect_left(self._by_score, self._scored.popleft())]
        self._scored.append((score, length))
        insort(self._by_score, (score, length))

    def _learn(self, longer: Features, shorter: Features) -> None:
        gap = max(-30.0, min(30.0, self._score(longer) - self._score(shorter)))
        step = self._rate / (1.0 + exp(gap))  # minus the gradient of log(1 + exp(-gap))
        for index, value in longer:
            self._weights[index] += step * value
        for index, value in shorter:
            self._weights[index] -= step * value

    def _score(self, found: Features) -> float:
        return sum(self._weights[index] * value for index, value in found)


def features(prompt: Sequence[int]) -> Features:
    """The prompt's length class and its first and last tokens, hashed to indices (integers hash to themselves)."""
    length = log2(1 + len(prompt))
    tokens = {hash((token, 1)) % NUM_WEIGHTS for token in prompt[-NUM_TAIL:]}
    tokens |= {hash((token, 2)) % NUM_WEIGHTS for token in prompt[:NUM_HEAD]}
    weight = 1.0 / max(1, len(tokens)) ** 0.5
    return (
        (hash((int(length), 3)) % NUM_WEIGHTS, 1.0),
        (hash((0, 4)) % NUM_WEIGHTS, length / 16),
        *((index, weight) for index in sorted(tokens)),
    )
