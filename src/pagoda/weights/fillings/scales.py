"""Scales and zeros of a matrix whose panels come in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.lay_out import lay_out_rows
from ...kernels.packed_bytes import PANEL
from ..formats.base import check_finite

if TYPE_CHECKING:
    from ...kernels.packed import PackedWeight
    from ..formats.base import Codes


class Scales:
    """One of each row, or of each group of its inputs; none beside plain numbers. Of a matrix of so many ``panels``,
    each ``like`` this one.
    """

    in_pieces = False

    def __init__(self, like: PackedWeight, panels: int) -> None:
        shape = (1, panels, like.num_groups, PANEL) if like.group else (1, panels * PANEL)
        self._kernel, self._group = like.format, like.group
        self._scales, self._zeros = (
            None if t is None else torch.empty(shape, dtype=t.dtype, device=t.device) for t in (like.scales, like.zeros)
        )

    def lay_out(self, first: int, rows: Tensor, codes: Codes, panels: Tensor) -> None:
        check_finite(lay_out_rows(self._kernel, rows, panels, copying_threads()))
        for target, part in ((self._scales, codes.get("scale")), (self._zeros, codes.get("zero"))):
            if target is not None and part is not None:
                self._write(target, first, scales_by_panel(part, self._group)[0])

    def put(self, first: int, part: PackedWeight) -> None:
        for target, found in ((self._scales, part.scales), (self._zeros, part.zeros)):
            if target is not None and found is not None:
                self._write(target, first, found[0])

    def _write(self, target: Tensor, first: int, found: Tensor) -> None:
        start = first if self._group else first * PANEL
        target[0, start : start + found.shape[0]] = found

    def whole(self) -> tuple[Tensor | None, Tensor | None]:
        return self._scales, self._zeros

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self._scales, self._zeros) if t is not None)


def copying_threads() -> int:
    """For rows that are only moved: all but one. With both of two cores in this, reads were resumed late and the disk
    idled (0.53 of its rate on a busy machine, 0.70 with one core left, in turns).
    """
    return max(1, torch.get_num_threads() - 1)


def scales_by_panel(values: Tensor, group: int) -> Tensor:
    """``[rows]``, or ``[rows, groups]`` where ``group`` inputs share one, in the order of `PackedWeight`'s scales."""
    full = values.new_zeros(-(-values.shape[0] // PANEL) * PANEL, *values.shape[1:])
    full[: values.shape[0]] = values
    return full.view(1, -1, PANEL, full.shape[1]).transpose(2, 3).contiguous() if group else full[None]
