"""What is known of a bf12 matrix beside the bytes of its panels (`kernels.bf12`), while these come in any order.

Each panel has a window of exponents, and lists the weights outside of it: `PackedWeight.scales` of that format, which
is whole only when the last panel has come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels.bf12 import RECORD, decode, joined
from ...kernels.lay_out import lay_out_bf12
from ..formats.base import BLOCK_ELEMS, check_finite
from .scales import copying_threads

if TYPE_CHECKING:
    from ...kernels.packed import PackedWeight
    from ..formats.base import Codes

RARE = 256
"""With more exceptions than one in so many weights a matrix is kept in 16 bits: it would save little, and its products
correct every one of them. (Trained matrices have some two in ten thousand.)
"""


class Windows:
    """Those of the panels that have come, of a matrix of ``num_weights``."""

    in_pieces = True  # so that there are never many exceptions

    def __init__(self, num_weights: int) -> None:
        self._most, self._num_exceptions = num_weights // RARE, 0
        self._parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by their first panel

    def lay_out(self, first: int, rows: Tensor, codes: Codes, panels: Tensor) -> None:
        finite, *known = lay_out_bf12(rows, panels, copying_threads())
        check_finite(finite)
        self._put(first, *known)

    def put(self, first: int, part: PackedWeight) -> None:
        assert part.scales is not None
        windows, panels = part.scales, part.num_panels
        records = windows[: RECORD * panels].view(panels, RECORD)
        self._put(first, records[:, 0].clone(), records[:, 2].long(), windows[RECORD * panels :].clone())

    def _put(self, first: int, base: Tensor, counts: Tensor, exceptions: Tensor) -> None:
        self._parts[first] = base, counts, exceptions
        self._num_exceptions += len(exceptions)

    @property
    def too_many(self) -> bool:
        """Whether the matrix takes less as it is."""
        return self._num_exceptions > self._most

    def parts(self) -> Iterator[tuple[int, int, Tensor]]:
        """First panel, how many, and their windows, as they came."""
        for first, part in self._parts.items():
            yield first, len(part[0]), joined(*part)

    def whole(self) -> tuple[Tensor, None]:
        parts = (self._parts[first] for first in sorted(self._parts))
        return joined(*(torch.cat(part) for part in zip(*parts, strict=True))), None

    @property
    def nbytes(self) -> int:
        return sum(RECORD * 4 * len(base) + exceptions.nbytes for base, _, exceptions in self._parts.values())


def widened(data: Tensor, windows: Windows, blocks: int) -> Iterator[tuple[int, int, Tensor]]:
    """Of ``data`` ``[panels, chunks, 192]``, some panels that have come at a time: the first, that behind the last, and
    these as bf16 has them, uint8 ``[panels, blocks, 64]``.
    """
    step = max(1, BLOCK_ELEMS // max(1, 32 * blocks))
    for first, panels, known in windows.parts():
        for start in range(0, panels, step):
            stop = min(start + step, panels)
            lines = decode(data[first + start : first + stop], known[RECORD * start :], blocks)
            yield first + start, first + stop, lines.contiguous().view(torch.uint8)
