"""Floating-point weights kept in a type of their own while the model computes in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .base import Part, WeightFormat

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class Plain(WeightFormat):
    """The numbers themselves, in ``stored``."""

    embed: str = "same"

    stored: ClassVar[str]

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"values": ((rows, cols), self.stored)}

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        return {"values": weight.to(getattr(torch, self.stored))}

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return codes["values"].float()
