"""int4: 4 bits per weight and a scale per group of 32, 64 or 128 inputs; activations stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

from ._int4 import GroupInt4


@dataclass(frozen=True)
class Int4(GroupInt4):
    name = "int4"


FORMAT = Int4
