"""bf16: 2 bytes per weight, 8 bits of precision, the range of float32."""

from __future__ import annotations

from ._bf16 import BF16

FORMAT = BF16
