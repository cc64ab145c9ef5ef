"""int2: 2 bits per weight in groups of 32, 64 or 128 inputs, with a low-rank error correction."""

from __future__ import annotations

from dataclasses import dataclass

from ._low_rank import LowRankCorrected


@dataclass(frozen=True)
class Int2(LowRankCorrected):
    name = "int2"
    opened = "int2"
    bits = 2
    relative_error = 0.42


FORMAT = Int2
