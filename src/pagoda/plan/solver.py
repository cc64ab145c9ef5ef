"""HiGHS without its banner, and programs written for it entry by entry (its expressions cost milliseconds a row)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def silent_solver() -> Any:
    """A ``highspy.Highs`` that prints nothing."""
    import highspy

    class Silent(highspy.Highs):  # the callbacks' set-up prints a banner
        def enableCallbacks(self) -> None:
            self.silent()
            super().enableCallbacks()  # type: ignore[no-untyped-call]

    return Silent()  # type: ignore[no-untyped-call]


class Program:
    """A linear program that is written down column by column and row by row, and solved for the least cost."""

    def __init__(self) -> None:
        self._columns: list[tuple[float, float, float, float, bool]] = []
        self._rows: list[tuple[float, float]] = []
        self._entries: list[tuple[int, int, float]] = []

    def column(self, lower: float, upper: float | None, cost: float, *, step: int = 0) -> int:
        """A number between the two (no upper end: None). ``step``: a whole number of 1/``step``; 0: any number."""
        unit = 1.0 / step if step else 1.0
        bounds = lower / unit, math.inf if upper is None else upper / unit
        self._columns.append((*bounds, cost * unit, unit, bool(step)))
        return len(self._columns) - 1

    def row(self, entries: Sequence[tuple[int, float]], lower: float | None, upper: float | None) -> None:
        """The sum of (column, factor) lies between the two."""
        self._rows.append((-math.inf if lower is None else lower, math.inf if upper is None else upper))
        self._entries += [(len(self._rows) - 1, column, factor) for column, factor in entries]

    def solve(self) -> list[float] | None:
        """The columns' numbers; None where no numbers keep all rows."""
        import highspy
        import numpy as np

        solver, lp = silent_solver(), highspy.HighsLp()
        lower, upper, cost, units, whole = (np.array(part) for part in zip(*self._columns, strict=True))
        lp.num_col_, lp.num_row_ = len(self._columns), len(self._rows)
        lp.col_lower_, lp.col_upper_, lp.col_cost_ = lower, upper, cost
        lp.row_lower_, lp.row_upper_ = (np.array(part) for part in zip(*self._rows, strict=True))
        rows, columns, factors = (np.array(part) for part in zip(*self._entries, strict=True))
        matrix, order = lp.a_matrix_, np.argsort(rows, kind="stable")
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.start_ = np.searchsorted(rows[order], np.arange(len(self._rows) + 1)).astype(np.int32)
        matrix.index_, matrix.value_ = columns[order].astype(np.int32), factors[order] * units[columns[order]]
        if whole.any():
            kinds = highspy.HighsVarType
            lp.integrality_ = [kinds.kInteger if one else kinds.kContinuous for one in whole]
            solver.setOptionValue("mip_rel_gap", 1e-8)
        solver.passModel(lp)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        return [float(value) for value in np.array(solver.getSolution().col_value) * units]
