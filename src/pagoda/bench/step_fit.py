"""``FittedSteps`` out of measured steps: least squares of relative errors, what is usual first, then the means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..core.errors import ConfigError
from ..plan.roofline import Roofline
from ..plan.steps import FittedSteps, at_pace, knot_weights
from ..plan.work import StepModel

TOKEN_KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
ROW_KNOTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROUNDS = 4
OUTLIER = 1.25
"""A step that took so many times what the fit says was disturbed; the next round leaves it out."""
HARD_OUTLIER = 3.0
"""Smaller disturbances are what traffic will meet too: the last fit is to all steps but these."""


EXPECTED_WEIGHT = 0.5
"""What the roofline says of a slot and a pair counts as much as a step that consists of half of it: where contexts are
short, or the machine changed between short and long ones, steps say little (of a 0.5B model at eight times 250 slots a
slot's share is a fiftieth; it was once found 0, once five times what the kernel takes).
"""


class Sample(NamedTuple):
    """One step that ran: the arguments of ``StepModel.step_seconds``, what it took, and the pace of memory, in bytes a
    second, where somebody looked.
    """

    decodes: int
    slots: float
    chunk: int
    pairs: float
    rows: int
    seconds: float
    pace: float = 0.0

    def at(self, pace: float, reads: Roofline) -> Sample:
        """The same step at another pace; ``reads`` knows what it reads from memory."""
        if not self.pace:
            return self
        num_bytes = reads.read_bytes(self.decodes + self.chunk, self.rows, self.slots)
        return self._replace(seconds=at_pace(self.seconds, num_bytes, self.pace, pace), pace=pace)


def fit_steps(samples: Sequence[Sample], expected: StepModel | None = None) -> FittedSteps:
    """Least squares of relative errors, nothing below zero; the usual without disturbed steps, then means with them.

    ``expected``: whose seconds a slot and a pair hold where the steps do not tell otherwise. Raises ConfigError for too
    few steps, or such that follow no line.
    """
    tokens = _knots(TOKEN_KNOTS, [s.decodes + s.chunk for s in samples])
    rows = _knots(ROW_KNOTS, [s.rows for s in samples])
    table = np.array([_columns(tokens, rows, s) for s in samples])
    seconds = np.array([s.seconds for s in samples])
    if len(samples) < 2 * table.shape[1]:
        raise ConfigError(f"{len(samples)} measured steps are too few to fit {table.shape[1]} numbers")
    used, belief = np.ones(len(samples), bool), _belief(table.shape[1], expected)
    for _ in range(ROUNDS):
        found = _least_squares(table[used] / seconds[used, None], np.ones(int(used.sum())), belief)
        away = seconds / np.maximum(table @ found, 1e-9)
        used = (away < OUTLIER) & (away > 1 / OUTLIER)
        if used.sum() < table.shape[1]:
            raise ConfigError("measured steps follow no line: the machine was busy with something else; try again")
    found = _means(table, seconds, np.maximum(table @ found, 1e-9), belief)
    first = len(tokens) + len(rows)
    return FittedSteps(
        body=tuple(zip(tokens, found[: len(tokens)].tolist(), strict=True)),
        head=tuple(zip(rows, found[len(tokens) : first].tolist(), strict=True)),
        slot=float(found[first]), pair=float(found[first + 1]),
        spread=float(np.median(np.abs(away - 1))), num_steps=len(samples),
    )  # fmt: skip


def _belief(num_columns: int, expected: StepModel | None) -> np.ndarray:
    """Rows (m, num_columns) that say: so many seconds a slot, a pair, times ``EXPECTED_WEIGHT``; none where nothing is
    expected.
    """
    rows = np.zeros((0 if expected is None else 2, num_columns))
    if expected is not None:
        near, prompt = expected.step_seconds(1, 0.0, 0, 0.0, 1), expected.step_seconds(0, 0.0, 256, 0.0, 1)
        rows[0, -2] = EXPECTED_WEIGHT * 1024 / (expected.step_seconds(1, 1024.0, 0, 0.0, 1) - near)
        rows[1, -1] = EXPECTED_WEIGHT * 2**18 / (expected.step_seconds(0, 0.0, 256, 2.0**18, 1) - prompt)
    return rows


def _means(table: np.ndarray, seconds: np.ndarray, fitted: np.ndarray, belief: np.ndarray) -> np.ndarray:
    """Once more with the disturbed steps, weighed by what is usual: means, not medians. Small steps are disturbed more
    than large ones (a decode of 8 by a tenth, a prompt of 512 by nothing), so one factor for all would favour neither.
    """
    usual = seconds < HARD_OUTLIER * fitted
    return _least_squares(table[usual] / fitted[usual, None], seconds[usual] / fitted[usual], belief)


def _knots(all_knots: tuple[int, ...], seen: list[int]) -> tuple[int, ...]:
    """Those that were measured; curves go straight between and beyond them."""
    there = set(seen)
    return tuple(knot for knot in all_knots if knot in there)


def _columns(tokens: tuple[int, ...], rows: tuple[int, ...], s: Sample) -> list[float]:
    line = [0.0] * (len(tokens) + len(rows)) + [s.slots, s.pairs]
    for place, weight in knot_weights(tokens, s.decodes + s.chunk):
        line[place] = weight
    for place, weight in knot_weights(rows, s.rows):
        line[len(tokens) + place] = weight
    return line


def _least_squares(table: np.ndarray, wanted: np.ndarray, belief: np.ndarray) -> np.ndarray:
    """Columns whose best share is negative leave, the most negative first."""
    table = np.concatenate([table, belief])
    wanted = np.concatenate([wanted, np.full(len(belief), EXPECTED_WEIGHT)])
    scale = np.maximum(np.abs(table).max(axis=0), 1e-30)
    kept = list(range(table.shape[1]))
    while True:
        part = table[:, kept] / scale[kept]
        found = np.linalg.lstsq(part, wanted, rcond=1e-9)[0]
        if found.min() >= 0:
            break
        del kept[int(found.argmin())]
    whole = np.zeros(table.shape[1])
    whole[kept] = found / scale[kept]
    return whole
