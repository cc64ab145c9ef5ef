"""int4: 4 bits per weight and a scale per group of 32, 64 or 128 inputs; activations stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

from ._groups import GroupedIntegers


@dataclass(frozen=True)
class Int4(GroupedIntegers):
    name = "int4"


FORMAT = Int4
