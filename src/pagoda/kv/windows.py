"""Which pages of layers with a sliding window no query reaches any more.

A query at position p of a layer whose window is w sees the slots p - w + 1 … p, and no later one looks further back. So
of a sequence of n computed tokens the slots before n - w + 1 are dead in that layer::

    slots    0 ……………………… first                n - w + 1        n
    row      ░░░░░░ dead ░░░░░░│▓▓▓▓ read, masked ▓▓▓│▓▓▓ window ▓▓▓│ next token

Slots keep their numbers, only the pages in front go: lengths, masks and bits are those of a row that is whole. The
kernels look at slots in spans, from a multiple of `SPAN` on, so what is masked within the first span must be there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..core.types import KVFormat
from .pages import Int32s

SPAN = 64
"""Windows begin at multiples of it: ``kWidestSpan`` of kernels/csrc/attention_plan.cpp."""
NEVER = 2**62


class Windows:
    """``by_layer``: the window of each layer in slots, 0 where it sees everything. There is one at least. ``span``:
    where windows begin; tests have shorter ones.
    """

    def __init__(self, by_layer: Sequence[int], fmt: KVFormat, span: int = SPAN) -> None:
        assert len(by_layer) == fmt.num_layers
        assert any(by_layer), "a model without windows needs nothing of this"
        self._windows = np.array(by_layer, np.int64)
        self._lengths = sorted(set(by_layer) - {0})
        self._unit = math.lcm(span, fmt.page_size)  # what leaves a row together
        self._page_size, self._pages_per_block = fmt.page_size, fmt.pages_per_block
        self.first_layer = int(np.flatnonzero(self._windows)[0])  # with a window
        self.num_layers = int((self._windows > 0).sum())
        self.pages_per_column = self.num_layers * fmt.num_kv_heads  # windowed pages of a page of tokens

    @classmethod
    def of(cls, by_layer: Sequence[int], fmt: KVFormat) -> Windows | None:
        """None where no layer has one."""
        return cls(by_layer, fmt) if any(by_layer) else None

    def rows(self, num_rows: int) -> npt.NDArray[np.bool_]:
        """bool ``[num_rows]``: those of layers with a window, in a table or entry of rows no coarser than layers."""
        assert num_rows >= len(self._windows), "one row for layers with windows and without"
        return np.repeat(self._windows > 0, num_rows // len(self._windows))

    def dead(self, num_tokens: int, num_rows: int) -> Int32s:
        """int32 ``[num_rows]``: pages in front of each row that no query after ``num_tokens`` tokens reaches."""
        before = np.maximum(num_tokens - self._windows + 1, 0) // self._unit * (self._unit // self._page_size)
        before[self._windows == 0] = 0
        return np.repeat(before.astype(np.int32), num_rows // len(self._windows))

    def reach(self, num_tokens: int) -> int:
        """The first page that some windowed layer still reads."""
        return max(0, num_tokens - self._lengths[-1] + 1) // self._unit * (self._unit // self._page_size)

    def due(self, num_tokens: int) -> int:
        """From how many tokens on ``dead`` says more than it does at ``num_tokens``."""
        gone = (max(0, num_tokens - window + 1) // self._unit for window in self._lengths)
        return min((num + 1) * self._unit + window - 1 for num, window in zip(gone, self._lengths, strict=True))
