"""int3: 3 bits per weight in groups of 32, 64 or 128 inputs, with a low-rank error correction."""

from __future__ import annotations

from dataclasses import dataclass

from ._low_rank import LowRankCorrected


@dataclass(frozen=True)
class Int3(LowRankCorrected):
    name = "int3"
    opened = "int3"
    bits = 3
    relative_error = 0.2


FORMAT = Int3
