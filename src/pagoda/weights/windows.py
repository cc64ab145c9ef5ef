"""What is known of a bf12 matrix beside the bytes of its panels (`kernels.bf12`), while these come in any order.

Each panel has a window of exponents, and lists the weights outside of it: `PackedWeight.scales` of that format, which
is whole only when the last panel has come.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..kernels.bf12 import RECORD, decode, joined
from .formats.base import BLOCK_ELEMS

RARE = 256
"""With more exceptions than one in so many weights a matrix is kept in 16 bits: it would save little, and its products
correct every one of them. (Trained matrices have some two in ten thousand.)
"""


class Windows:
    """Those of the panels that have come, of a matrix of ``num_weights``."""

    def __init__(self, num_weights: int) -> None:
        self._most, self.num_exceptions = num_weights // RARE, 0
        self._parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by their first panel

    def put(self, first: int, base: Tensor, counts: Tensor, exceptions: Tensor) -> None:
        """Of panels from ``first``, as `kernels.lay_out.lay_out_bf12` gives them."""
        self._parts[first] = base, counts, exceptions
        self.num_exceptions += len(exceptions)

    def put_joined(self, first: int, windows: Tensor, panels: int) -> None:
        """Of so many panels from ``first``, as `kernels.packed.lay_out` gives them."""
        records = windows[: RECORD * panels].view(panels, RECORD)
        self.put(first, records[:, 0].clone(), records[:, 2].long(), windows[RECORD * panels :].clone())

    @property
    def too_many(self) -> bool:
        """Whether the matrix takes less as it is."""
        return self.num_exceptions > self._most

    def parts(self) -> Iterator[tuple[int, int, Tensor]]:
        """First panel, how many, and their windows, as they came."""
        for first, part in self._parts.items():
            yield first, len(part[0]), joined(*part)

    def joined(self) -> Tensor:
        """Of all panels."""
        return joined(*(torch.cat(part) for part in zip(*(self._parts[n] for n in sorted(self._parts)), strict=True)))

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
