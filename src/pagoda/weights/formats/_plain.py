"""Floating-point weights kept in a type of their own while the model computes in another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...kernels.packed_bytes import packed_nbytes
from .base import Part, WeightFormat, check_finite

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

        values = weight.to(getattr(torch, self.stored))
        check_finite(bool(torch.isfinite(values).all()))  # float16 ends at 65504
        return {"values": values}

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return codes["values"], None, None

    def num_bytes(self, rows: int, cols: int) -> int:
        return packed_nbytes(self.kernel, rows, cols) if self.kernel else self.stored_bytes(rows, cols)

    def same_codes(self, other: WeightFormat) -> bool:
        """The numbers are stored alike, whatever order they have in memory."""
        return isinstance(other, Plain) and other.stored == self.stored

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return codes["values"].float()
