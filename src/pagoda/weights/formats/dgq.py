"""dgq: 4 bits per weight that open into 8-bit integers of one scale per output (arXiv:2310.04836, 3.1).

Group scales are small integers, so a group's 4-bit codes become int8 values with one multiplication and the product
runs in 8-bit integers over the whole row, as with ``w8a8``, at nearly the bytes of ``int4``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._bits import grouped, nonzero, pack_bits, packed_width, ungrouped, unpack_bits
from .base import Part, WeightFormat, check_group, num_groups

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Codes


@dataclass(frozen=True)
class DGQ(WeightFormat):
    """``w ~= (codes - zero) * step * scale``: step 1..127 and zero 0..15 per group (uint8), scale float32 per row.

    ``|(codes - zero) * step| <= 127`` always: what the row's integers are made of.
    """

    group: int = 128

    name = "dgq"
    opened = "dgq"
    dynamic = True
    relative_error = 0.14

    def __post_init__(self) -> None:
        check_group(self.name, self.group)

    def parts(self, rows: int, cols: int) -> dict[str, Part]:
        groups = num_groups(cols, self.group)
        return {
            "codes": ((rows, packed_width(cols, 4)), "uint8"),
            "step": ((rows, groups), "uint8"),
            "zero": ((rows, groups), "uint8"),
            "scale": ((rows,), "float32"),
        }

    def quantize(self, weight: Tensor) -> Codes:
        import torch

        w = grouped(weight, self.group)
        low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
        size = (high - low) / 15
        zero = (-low / nonzero(size)).round().clamp(0, 15)
        reach = torch.maximum(zero, 15 - zero)
        scale = (size * reach).amax(1) / 127
        ratio, most = size / nonzero(scale)[:, None], (127 / reach).floor()
        best, best_error = None, None
        for nearby in (ratio.floor(), ratio.ceil()):
            step = torch.minimum(nearby.clamp(min=1), most)
            error = (self._nearest(w, step, zero, scale)[1] - w).square().sum(-1)
            best = step if best is None else torch.where(error < best_error, step, best)
            best_error = error if best_error is None else torch.minimum(error, best_error)
        assert best is not None
        q = ungrouped(self._nearest(w, best, zero, scale)[0], weight.shape[1])
        step, zero = best.to(torch.uint8), zero.to(torch.uint8)
        return {"codes": pack_bits(q.to(torch.uint8), 4), "step": step, "zero": zero, "scale": scale}

    def dequantize(self, codes: Codes, cols: int) -> Tensor:
        return self.values(codes, cols) * codes["scale"][:, None]

    def values(self, codes: Codes, cols: int) -> Tensor:
        """The row's 8-bit integers, as float32: ``[rows, cols]`` in [-127, 127]."""
        q = grouped(unpack_bits(codes["codes"], 4, cols).float(), self.group)
        return ungrouped((q - codes["zero"].float()[..., None]) * codes["step"].float()[..., None], cols)

    def _nearest(self, w: Tensor, step: Tensor, zero: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and what they stand for, with these steps."""
        grid = (step * nonzero(scale)[:, None])[..., None]
        q = ((w / grid).round() + zero[..., None]).clamp(0, 15)
        return q, (q - zero[..., None]) * grid


FORMAT = DGQ
