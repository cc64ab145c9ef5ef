"""bfloat16: ``bf16``, and ``bf12``, which has the same numbers in another order while they are in memory."""

from __future__ import annotations

from dataclasses import dataclass

from ._plain import Plain


@dataclass(frozen=True)
class BF16(Plain):
    name = "bf16"
    kernel = "bf16"
    stored = "bfloat16"
    relative_error = 0.003
