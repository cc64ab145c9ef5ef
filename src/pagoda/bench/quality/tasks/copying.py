"""Copying a list of words that make no sense together, after a long text."""

from __future__ import annotations

from typing import ClassVar

from ..copying import copy_case
from ._dictated import Dictated, DictatedTask


class Copying(DictatedTask):
    """Every word counts, so there is nothing to leave out."""

    metrics: ClassVar[dict[str, bool]] = {"copying": True}

    def dictated(self, seed: int) -> Dictated:
        return copy_case(seed, 16)


TASK = Copying
