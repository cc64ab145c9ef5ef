"""int5: 5 bits per weight, six in 32, and a scale per group of 48 or 96 inputs; activations stay as they are.

Half way between int4 and int8 in what it loses for what it takes: where ``int4`` is too coarse for a model and ``int8``
does not fit. Six whole codes in 32 bits (5.33 each) are read as fast as those of int4.
"""

from __future__ import annotations

from dataclasses import dataclass

from ._groups import GroupedIntegers


@dataclass(frozen=True)
class Int5(GroupedIntegers):
    group: int = 96

    name = "int5"
    kernel = "int5"
    bits = 5
    relative_error = 0.065


FORMAT = Int5
