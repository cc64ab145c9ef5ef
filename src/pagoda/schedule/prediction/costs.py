"""What a token costs this machine, learned from its steps: a prompt token and a token of an answer are not alike.

    seconds of a step = base + prompt x (prompt tokens) + token x (decodes)

by least squares over the steps so far, older ones fading. A job's *work* is the time that it takes from the others: its
prompt tokens, and for every token of its answer its own cost and its share of ``base`` among those that decode
together. On one machine 3 prompt tokens cost as much as a token of an answer, on another 20: an order by work that
takes one for the other is not shortest first.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..item import Scheduled

FADE = 0.998
MIN_STEPS = 32


class StepCosts:
    """``prompt`` and ``token``: seconds that are assumed until ``MIN_STEPS`` steps were seen."""

    def __init__(self, prompt: float = 0.001, token: float = 0.008) -> None:
        self.prompt, self.token, self._num_steps = prompt, token, 0
        self._products = [[0.0] * 3 for _ in range(3)]  # of (1, n, m)
        self._seconds = [0.0] * 3

    def note(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        """A step ran."""
        m = sum(s.num_tokens == 1 for s in scheduled)
        row = (1.0, float(sum(s.num_tokens for s in scheduled) - m), float(m))
        for i, a in enumerate(row):
            self._seconds[i] = FADE * self._seconds[i] + a * seconds
            for j, b in enumerate(row):
                self._products[i][j] = FADE * self._products[i][j] + a * b
        self._num_steps += 1
        if self._num_steps >= MIN_STEPS and self._num_steps % 16 == 0:
            self._fit()

    def work(self, num_prompt: int, num_output: int) -> float:
        """Seconds of the machine that such a job takes."""
        return self.prompt * num_prompt + self.token * num_output

    def _fit(self) -> None:
        ridge = [[a + (1e-6 * self._products[i][i] + 1e-9) * (i == j) for j, a in enumerate(row)]
                 for i, row in enumerate(self._products)]  # fmt: skip
        base, prompt, token = (max(0.0, x) for x in _solve(ridge, self._seconds))
        steps, decodes = self._products[0][0], self._products[0][2]
        self.prompt = max(prompt, 1e-9)
        self.token = max(token + base * steps / max(decodes, 1.0), 1e-9)


def _solve(matrix: list[list[float]], right: Sequence[float]) -> list[float]:
    """Gaussian elimination; the matrix is positive definite, so no pivot is looked for."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, pivot in enumerate(rows):
        for other in rows[i + 1 :]:
            share = other[i] / pivot[i]
            for j in range(i, len(pivot)):
                other[j] -= share * pivot[j]
    found = [0.0] * len(rows)
    for i in reversed(range(len(rows))):
        known = sum(rows[i][j] * found[j] for j in range(i + 1, len(rows)))
        found[i] = (rows[i][-1] - known) / rows[i][i]
    return found
