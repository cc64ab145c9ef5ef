"""int8: 8 bits per weight, one float32 scale per output; activations stay as they are."""

from __future__ import annotations

from dataclasses import dataclass

from ._int8 import RowInt8


@dataclass(frozen=True)
class Int8(RowInt8):
    name = "int8"


FORMAT = Int8
