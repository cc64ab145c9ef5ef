"""Two bits a number on KIVI's grids, without a raw window: whole pages are all there is, and prefixes are shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._grids import GridCodec


@dataclass(frozen=True)
class Int2(GridCodec):
    """``kivi(window=0)`` under the name of its width. Only the tokens since the last act are raw, at most ``every`` and
    a page. ``int2(keys='token')`` is the same width by plain rounding.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.02750"
    window: int = 0

    @property
    def num_bits(self) -> int:
        return 2


POLICY = Int2
