"""Counting back from a number, after a long text: what hangs on the newest tokens alone."""

from __future__ import annotations

from typing import ClassVar

from ..counting import count_back_case
from ._dictated import Dictated, DictatedTask


class Counting(DictatedTask):
    """Share of the numbers' tokens that are the first choice."""

    metrics: ClassVar[dict[str, bool]] = {"counting": True}

    def dictated(self, seed: int) -> Dictated:
        return count_back_case(seed, 8)


TASK = Counting
