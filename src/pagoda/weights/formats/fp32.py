"""fp32: 4 bytes per weight."""

from __future__ import annotations

from dataclasses import dataclass

from ._plain import Plain


@dataclass(frozen=True)
class FP32(Plain):
    name = "fp32"
    kernel = "fp32"
    stored = "float32"
    relative_error = 0.0


FORMAT = FP32
