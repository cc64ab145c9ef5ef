"""bf16: 2 bytes per weight, 8 bits of precision, the range of float32."""

from __future__ import annotations

from dataclasses import dataclass

from ._plain import Plain


@dataclass(frozen=True)
class BF16(Plain):
    name = "bf16"
    kernel = "bf16"
    stored = "bfloat16"
    relative_error = 0.003


FORMAT = BF16
