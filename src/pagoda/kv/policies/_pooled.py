"""Scores of the newest queries, each averaged over its neighbours: text is read in pieces longer than a token."""

from __future__ import annotations

from dataclasses import dataclass

from ._budget import looks_back, odd
from ._scored import Scored


@dataclass(frozen=True)
class Pooled(Scored):
    """``window`` newest queries are asked, and scores averaged over ``kernel`` neighbours."""

    window: int = 16
    kernel: int = 13

    def __post_init__(self) -> None:
        super().__post_init__()
        looks_back(self.window)
        odd("kernel", self.kernel)

    @property
    def pool(self) -> int:
        return self.kernel
