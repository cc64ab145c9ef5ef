"""w8a8: weights as ``int8``; activations become 8-bit integers, a scale a token; products in integers."""

from __future__ import annotations

from dataclasses import dataclass

from ._int8 import RowInt8


@dataclass(frozen=True)
class W8A8(RowInt8):
    embed: str = "w8a8"

    name = "w8a8"
    dynamic = True


FORMAT = W8A8
