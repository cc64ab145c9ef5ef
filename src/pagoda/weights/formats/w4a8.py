"""w4a8: weights as ``int4``; activations become 8-bit integers, a scale a token and group; products in integers."""

from __future__ import annotations

from dataclasses import dataclass

from ._groups import GroupedIntegers


@dataclass(frozen=True)
class W4A8(GroupedIntegers):
    embed: str = "w8a8"

    name = "w4a8"
    dynamic = True


FORMAT = W4A8
