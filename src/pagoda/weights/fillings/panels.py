"""Matrices in the kernels' order: whole panels of 16 rows go to their place at once."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...kernels.lay_out import STORED, can_lay_out
from ...kernels.memory import empty_bytes, touch_behind
from ...kernels.packed import PackedWeight, lay_out
from ...kernels.packed_bytes import PANEL, PLAIN, data_shape
from ..formats.base import BLOCK_ELEMS, FAST_ELEMS, WeightFormat
from ..packed import CodedMatrix, PackedMatrix, PanelMatrix
from .base import Filling
from .scales import Scales
from .windows import Windows, widened

if TYPE_CHECKING:
    from ..formats.base import Codes


class Beside(Protocol):
    """What a matrix holds beside the bytes of its panels, while these come in any order."""

    in_pieces: bool
    """Whether rows that need no choosing are laid out some at a time all the same."""

    def lay_out(self, first: int, rows: Tensor, codes: Codes, panels: Tensor) -> None:
        """Writes ``rows``, as they are stored, with their ``codes``, into ``panels`` from the matrix's ``first`` on.

        Raises WeightsError for values that are not finite.
        """

    def put(self, first: int, part: PackedWeight) -> None:
        """Of panels from ``first`` on, which are laid out."""

    def whole(self) -> tuple[Tensor | None, Tensor | None]:
        """`PackedWeight`'s scales and zeros, once every row has come."""

    @property
    def nbytes(self) -> int: ...


class Panels(Filling):
    """Writes ``kernels.packed``'s order panel by panel; rows of a panel that came in parts wait for the others.

    A matrix of bf12 whose exponents turn out to lie far apart goes on in bf16's panels.
    """

    def __init__(
        self, format: WeightFormat, rows: int, cols: int, device: torch.device, memory: Tensor | None = None
    ) -> None:
        super().__init__(format, rows, cols, device)
        self._promised = format.num_bytes(rows, cols)
        self._beside: Beside
        if format.kernel == "bf12":
            self._beside = Windows(rows * cols)
        else:
            self._beside = self._scales()
        self.data = self._room(memory)
        self._edges: dict[int, dict[int, tuple[Tensor | None, ...]]] = {}
        """Of panels of which some rows have come: integers, scales and zeros of these."""

    def _scales(self) -> Scales:
        """Of the format that it has by now."""
        row = torch.zeros(1, self.cols, device=self.device)
        like = self._lay_out(*self.format.integers(self.format.quantize(row), self.cols))
        return Scales(like, -(-self.rows // PANEL))

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        stop = start + tensor.shape[0]
        whole = start % PANEL == 0 and (stop % PANEL == 0 or stop == self.rows)
        fast = (self._put_stored, self._put_converted, self._put_fast)
        if not whole or not any(put(start, tensor) for put in fast[self._beside.in_pieces :]):
            super().put(start, tensor)

    def _put_stored(self, start: int, tensor: Tensor | PackedMatrix) -> bool:
        """Whole panels of numbers that need no choosing; False where these are others."""
        stored = self._stored(tensor)
        if stored is None:
            return False
        first, last = start // PANEL, -(-(start + tensor.shape[0]) // PANEL)
        codes = tensor.codes if isinstance(tensor, CodedMatrix) else {}
        self._beside.lay_out(first, stored, codes, self.data[0, first:last])
        self._widen_if_wide()
        return True

    def _put_converted(self, start: int, tensor: Tensor | PackedMatrix) -> bool:
        """Whole panels of plain numbers, out of others or out of codes, some rows at a time; False where these panels
        are not plain.
        """
        dtype = STORED.get(self.format.read_as.kernel)
        fits = isinstance(tensor, Tensor | CodedMatrix) and self.data.device.type == "cpu"
        if self.format.kernel not in PLAIN or dtype is None or not fits:
            return False
        # Opened in plain torch, a code takes as much scratch as a number that is quantized: no more of them at a time.
        plainly = isinstance(tensor, CodedMatrix) and type(tensor.format).dequantize_to is WeightFormat.dequantize_to
        step = max(PANEL, (BLOCK_ELEMS if plainly else FAST_ELEMS) // max(1, self.cols) // PANEL * PANEL)
        for first in range(0, tensor.shape[0], step):
            last = min(first + step, tensor.shape[0])
            if isinstance(tensor, Tensor):
                rows = tensor[first:last].to(dtype).contiguous()
            else:
                rows = tensor.format.dequantize_to(tensor.codes_of(first, last), self.cols, dtype)
            if not self._put_stored(start + first, rows):
                return False
        return True

    def _put_fast(self, start: int, tensor: Tensor | PackedMatrix) -> bool:
        """Whole panels of plain weights, quantized by a kernel; False where it has none for them."""
        if not isinstance(tensor, Tensor) or self.data.device.type != "cpu":
            return False
        step = max(PANEL, FAST_ELEMS // max(1, self.cols) // PANEL * PANEL)
        for first in range(0, tensor.shape[0], step):
            rows = tensor[first : first + step].contiguous()
            codes = self.format.quantize_fast(rows, torch.get_num_threads())
            if codes is None or not self._put_stored(
                start + first, CodedMatrix(self.format, codes, self.cols, rows.dtype)
            ):
                return False
        return True

    def _stored(self, tensor: Tensor | PackedMatrix) -> Tensor | None:
        """Rows that hold this format's numbers already, to be laid out in one pass."""
        found: Tensor | None
        if isinstance(tensor, CodedMatrix):
            found = tensor.codes.get("codes") if self.format.same_codes(tensor.format) else None
        else:
            found = tensor if isinstance(tensor, Tensor) else None
        fits = found is not None and self.data.device.type == "cpu" and can_lay_out(self.format.read_as.kernel, found)
        return found if fits else None

    def _lay_out(self, values: Tensor, scales: Tensor | None, zeros: Tensor | None) -> PackedWeight:
        return lay_out(self.format.kernel, values, scales, zeros, group=self.format.kernel_group)

    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None:
        if codes is None:
            assert block is not None
            codes = self.format.quantize(block)
        integers = self.format.integers(codes, self.cols)
        stop = start + integers[0].shape[0]
        whole, end = -(-start // PANEL) * PANEL, stop if stop == self.rows else stop // PANEL * PANEL
        if end > whole:
            self._write(whole // PANEL, *(_cut(t, whole - start, end - start) for t in integers))
        for row in [*range(start, min(whole, stop)), *range(max(end, whole), stop)]:
            self._keep(row, tuple(None if t is None else t[row - start].clone() for t in integers))

    def _keep(self, row: int, values: tuple[Tensor | None, ...]) -> None:
        panel = row // PANEL
        rows = self._edges.setdefault(panel, {})
        rows[row] = values
        if len(rows) < min(PANEL, self.rows - panel * PANEL):
            return
        del self._edges[panel]
        parts = zip(*(rows[n] for n in sorted(rows)), strict=True)
        self._write(panel, *(None if part[0] is None else torch.stack(part) for part in parts))

    def _write(self, panel: int, values: Tensor | None, scales: Tensor | None, zeros: Tensor | None) -> None:
        assert values is not None
        small = self._lay_out(values, scales, zeros)
        self.data[:, panel : panel + small.num_panels] = small.data
        self._beside.put(panel, small)
        self._widen_if_wide()

    def _room(self, memory: Tensor | None = None) -> Tensor:
        """For the panels."""
        shape = (1, *data_shape(self.format.kernel, -(-self.rows // PANEL), self.cols))
        if memory is not None:
            return memory[: prod(shape)].view(shape)
        data = empty_bytes(shape, self.device)
        touch_behind(data)
        return data

    def _widen_if_wide(self) -> None:
        windows, narrow = self._beside, self.data[0]
        if not isinstance(windows, Windows) or not windows.too_many:
            return
        self.format = self.format.read_as
        self._beside, self.data = self._scales(), self._room()
        for first, last, found in widened(narrow, windows, self.data.shape[2]):
            self.data[0, first:last] = found

    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        assert not self._edges, "rows are missing"
        kernel, group = self.format.kernel, self.format.kernel_group
        packed = PackedWeight(kernel, self.rows, self.cols, self.data, *self._beside.whole(), group, 1)
        return PanelMatrix(self.format, packed, dtype)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self._beside.nbytes

    @property
    def beyond_bytes(self) -> int:
        return max(0, self.nbytes - self._promised)


def _cut(tensor: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if tensor is None else tensor[start:stop]
