"""bf12: bfloat16 in 12 bits of memory and not a bit of difference: exponents that lie close together are named by four.

Matrices whose exponents do not lie close together stay in bf16's panels (`weights.filling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._bf16 import BF16

if TYPE_CHECKING:
    from .base import WeightFormat


@dataclass(frozen=True)
class BF12(BF16):
    name = "bf12"
    kernel = "bf12"

    @property
    def read_as(self) -> WeightFormat:
        return BF16(embed=self.embed)


FORMAT = BF12
