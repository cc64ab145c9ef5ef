"""One code of eight bits a number and one float32 scale per row, whatever the codes are."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...kernels.packed_bytes import packed_nbytes
from .base import Part, WeightFormat, check_finite, empty_codes

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class ByRow(WeightFormat):
    """``w ~= codes * scale``; ``stored`` is the codes' dtype."""

    stored: ClassVar[str]

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        return {"codes": ((rows, cols), self.stored), "scale": ((rows,), "float32")}

    @abstractmethod
    def write(self, rows: Tensor, codes: Codes, num_threads: int) -> bool:
        """``rows`` rounded into ``codes`` by the extension; False where a value is not finite."""

    def quantize_fast(self, rows: Tensor, num_threads: int) -> Codes | None:
        from ...kernels.quantize_rows import can_quantize

        if not can_quantize(rows):
            return None
        codes = empty_codes(self, *rows.shape)
        check_finite(self.write(rows, codes, num_threads))
        return codes

    def integers(self, codes: Codes, cols: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return codes["codes"], codes["scale"], None

    def num_bytes(self, rows: int, cols: int) -> int:
        return packed_nbytes(self.kernel, rows, cols)

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return codes["codes"].float() * codes["scale"][:, None]
