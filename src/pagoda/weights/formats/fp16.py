"""fp16: 2 bytes per weight, 11 bits of precision, up to 65504."""

from __future__ import annotations

from dataclasses import dataclass

from ._plain import Plain


@dataclass(frozen=True)
class FP16(Plain):
    name = "fp16"
    kernel = "fp16"
    stored = "float16"
    relative_error = 0.0004


FORMAT = FP16
