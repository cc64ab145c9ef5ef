"""Products with weights of -1, 0 and 1 (BitNet) beside torch's linear on the same numbers in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

from . import linear
from .frame import Measured

FORMAT = "ternary"


def rows(shape: tuple[int, int], tokens: list[int], clock: str = "wall") -> Iterator[Measured]:
    """As `linear.rows`."""
    return linear.rows(shape, FORMAT, tokens, clock)
