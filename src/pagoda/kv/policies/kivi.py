"""KIVI: two bits a number, keys on a grid for each channel, values for each token, the newest tokens whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core.errors import ConfigError
from ._grids import GridCodec


@dataclass(frozen=True)
class Kivi(GridCodec):
    """Section 3.2 of the paper: which numbers share a grid, and the residual window. ``bits`` 2 or 4. Deviation: the
    group of keys is a page, whatever its size (the paper: 32 tokens).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2402.02750"
    bits: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (2, 4):
            raise ConfigError(f"bits={self.bits!r}; accepted: 2, 4")

    @property
    def num_bits(self) -> int:
        return self.bits


POLICY = Kivi
