"""One matrix on its way into a format: rows come as they are read, in any order, and are packed at once.

Three ways, by what the format can do:

    panels   a kernel knows the format: rows become codes, and whole panels of 16 rows go to their place in its order
    codes    rows become codes, in the format's own order
    whole    the format needs the matrix as a whole (low-rank corrections): kept dense until it is complete, unless its
             codes come ready
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..kernels.lay_out import STORED, can_lay_out, lay_out_bf12, lay_out_rows
from ..kernels.memory import empty_bytes, touch_behind
from ..kernels.packed import PackedWeight, lay_out
from ..kernels.packed_bytes import PANEL, PLAIN, data_shape
from .formats.base import BLOCK_ELEMS, FAST_ELEMS, WeightFormat, check_finite
from .packed import CodedMatrix, PackedMatrix, PanelMatrix
from .windows import Windows, widened

if TYPE_CHECKING:
    from .formats.base import Codes


class Filling(ABC):
    """A matrix ``[rows, cols]`` that is not complete yet."""

    def __init__(self, format: WeightFormat, rows: int, cols: int, device: torch.device) -> None:
        self.format, self.rows, self.cols, self.device = format, rows, cols, device

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        """Rows from ``start``: as codes where they are this format's already, quantized otherwise.

        Raises WeightsError for values that are not finite.
        """
        step = max(PANEL, BLOCK_ELEMS // max(self.cols, 1) // PANEL * PANEL)
        first = 0
        while first < tensor.shape[0]:
            # Blocks end where panels end, so that most panels come in one piece.
            last = min((start + first + step) // PANEL * PANEL - start, tensor.shape[0])
            self._put_block(start + first, *self._block(tensor, first, last))
            first = last

    def _block(self, tensor: Tensor | PackedMatrix, first: int, last: int) -> tuple[Codes | None, Tensor | None]:
        if isinstance(tensor, CodedMatrix):
            if self.format.row_wise and self.format.same_codes(tensor.format):
                return {n: t.to(self.device) for n, t in tensor.codes_of(first, last).items()}, None
            block = tensor.tile(first, last).to(self.device, torch.float32)
        else:
            assert isinstance(tensor, Tensor)
            block = tensor[first:last].to(self.device, torch.float32)
        check_finite(bool(torch.isfinite(block).all()))
        return None, block

    @abstractmethod
    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None: ...

    @abstractmethod
    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        """The packed matrix, once every row has come."""

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @property
    def beyond_bytes(self) -> int:
        """What it holds beyond the format's ``num_bytes``, which only its numbers tell: exceptions of bf12."""
        return 0


def new_filling(
    format: WeightFormat,
    rows: int,
    cols: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    panels: Tensor | None = None,
) -> Filling:
    """An empty matrix in ``format`` for a model that computes in ``dtype``. ``panels`` (uint8, flat): memory for those,
    where the format has any; None: their own.
    """
    where = torch.device(device)
    if format.kernel:
        return _Panels(format, rows, cols, where, panels)
    return new_codes(format, rows, cols, dtype=dtype, device=where)


def new_codes(
    format: WeightFormat, rows: int, cols: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Filling:
    """As `new_filling`, but what comes of it is a `CodedMatrix` in any format: the codes as they are stored."""
    where = torch.device(device)
    return _Codes(format, rows, cols, where) if format.row_wise else _Whole(format, rows, cols, where, dtype)


def pack_matrix(format: WeightFormat, weight: Tensor, dtype: torch.dtype) -> PackedMatrix:
    """A whole matrix at once."""
    filling = new_filling(format, *weight.shape, dtype=dtype, device=weight.device)
    filling.put(0, weight)
    return filling.finish(dtype)


class _Codes(Filling):
    def __init__(self, format: WeightFormat, rows: int, cols: int, device: torch.device) -> None:
        super().__init__(format, rows, cols, device)
        parts = format.parts(rows, cols)
        self.codes = {n: torch.empty(shape, dtype=getattr(torch, t), device=device) for n, (shape, t) in parts.items()}

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        if isinstance(tensor, CodedMatrix) and self.format.same_codes(tensor.format):
            self._put_codes(start, tensor.codes)
        elif not self._put_fast(start, tensor):
            super().put(start, tensor)

    def _put_fast(self, start: int, tensor: Tensor | PackedMatrix) -> bool:
        """Plain weights, quantized by a kernel; False where there is none for them."""
        if not isinstance(tensor, Tensor) or self.device.type != "cpu":
            return False
        step = max(1, FAST_ELEMS // max(1, self.cols))
        for first in range(0, tensor.shape[0], step):
            rows = tensor[first : first + step].contiguous()
            codes = self.format.quantize_fast(rows, torch.get_num_threads())
            if codes is None:
                return False
            self._put_codes(start + first, codes)
        return True

    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None:
        if codes is None:
            assert block is not None
            codes = self.format.quantize(block)
        self._put_codes(start, codes)

    def _put_codes(self, start: int, codes: Codes) -> None:
        for name, part in codes.items():
            self.codes[name][start : start + part.shape[0]] = part

    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        return CodedMatrix(self.format, self.codes, self.cols, dtype)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.codes.values())


class _Whole(Filling):
    def __init__(self, format: WeightFormat, rows: int, cols: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(format, rows, cols, device)
        self.dtype = dtype
        self.matrix: Tensor | None = None
        self.ready: Codes | None = None

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        if isinstance(tensor, CodedMatrix) and self.format.same_codes(tensor.format) and tensor.shape[0] == self.rows:
            self.ready = {n: t.to(self.device, copy=True) for n, t in tensor.codes.items()}
        else:
            super().put(start, tensor)

    def _put_block(self, start: int, codes: Codes | None, block: Tensor | None) -> None:
        assert block is not None
        if self.matrix is None:
            self.matrix = torch.empty(self.rows, self.cols, dtype=self.dtype, device=self.device)
        self.matrix[start : start + block.shape[0]] = block

    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        codes = self.ready
        if codes is None:
            assert self.matrix is not None, "rows are missing"
            codes = self.format.quantize(self.matrix.float())
        return CodedMatrix(self.format, codes, self.cols, dtype)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in ([self.matrix] if self.ready is None else self.ready.values()) if t is not None)


@dataclass(slots=True)
class _Edge:
    """A panel of which some rows have come: their integers, scales and zeros by row."""

    rows: dict[int, tuple[Tensor | None, ...]]


class _Panels(Filling):
    """Writes ``kernels.packed``'s order panel by panel; rows of a panel that came in parts wait for the others.

    A matrix of bf12 whose exponents turn out to lie far apart goes on in bf16's panels.
    """

    def __init__(
        self, format: WeightFormat, rows: int, cols: int, device: torch.device, memory: Tensor | None = None
    ) -> None:
        super().__init__(format, rows, cols, device)
        group, panels, self._promised = format.kernel_group, -(-rows // PANEL), format.num_bytes(rows, cols)
        like = self._lay_out(*format.integers(format.quantize(torch.zeros(1, cols, device=device)), cols))
        self.data = self._room(memory)
        groups = -(-cols // group) if group else 0
        scales = (1, panels, groups, PANEL) if group else (1, panels * PANEL)
        self._windows = Windows(rows * cols) if format.kernel == "bf12" else None
        kind = None if like.scales is None or self._windows is not None else like.scales.dtype
        self.scales = None if kind is None else torch.empty(scales, dtype=kind, device=device)
        self.zeros = None if like.zeros is None else torch.empty(scales, dtype=torch.uint8, device=device)
        self._edges: dict[int, _Edge] = {}

    def put(self, start: int, tensor: Tensor | PackedMatrix) -> None:
        stop = start + tensor.shape[0]
        whole = start % PANEL == 0 and (stop % PANEL == 0 or stop == self.rows)
        fast = (self._put_stored, self._put_converted, self._put_fast)
        if self._windows is not None:
            fast = fast[1:]  # some rows at a time, so that there are never many exceptions
        if not whole or not any(put(start, tensor) for put in fast):
            super().put(start, tensor)

    def _put_stored(self, start: int, tensor: Tensor | PackedMatrix) -> bool:
        """Whole panels of numbers that need no choosing; False where these are others."""
        stored = self._stored(tensor)
        if stored is None:
            return False
        first, last = start // PANEL, -(-(start + tensor.shape[0]) // PANEL)
        panels = self.data[0, first:last]
        if self._windows is not None:
            finite, *known = lay_out_bf12(stored, panels, copying_threads())
            check_finite(finite)
            self._windows.put(first, *known)
            self._widen_if_wide()
            return True
        check_finite(lay_out_rows(self.format.kernel, stored, panels, copying_threads()))
        if isinstance(tensor, CodedMatrix):
            zeros = tensor.codes.get("zero")
            self._put_scales(first, *(in_panels(t) for t in (tensor.codes["scale"], zeros)))
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

    def _put_scales(self, first: int, scales: Tensor | None, zeros: Tensor | None) -> None:
        """``[rows, groups]`` or ``[rows]``, filled up to whole panels, from panel ``first``."""
        for target, given in ((self.scales, scales), (self.zeros, zeros)):
            if target is None or given is None:
                continue
            if self.format.kernel_group:
                by_panel = given.view(-1, PANEL, given.shape[1]).transpose(1, 2)
                target[0, first : first + by_panel.shape[0]] = by_panel
            else:
                target[0, first * PANEL : first * PANEL + given.shape[0]] = given

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
        edge = self._edges.setdefault(panel, _Edge({}))
        edge.rows[row] = values
        if len(edge.rows) < min(PANEL, self.rows - panel * PANEL):
            return
        rows = [edge.rows[r] for r in sorted(edge.rows)]
        columns = [None if part[0] is None else torch.stack(list(part)) for part in zip(*rows, strict=True)]  # type: ignore[arg-type]
        del self._edges[panel]
        values_, scales, zeros = columns
        assert values_ is not None
        self._write(panel, values_, scales, zeros)

    def _write(self, panel: int, values: Tensor | None, scales: Tensor | None, zeros: Tensor | None) -> None:
        assert values is not None
        small = self._lay_out(values, scales, zeros)
        last = panel + small.num_panels
        self.data[:, panel:last] = small.data
        if self._windows is not None and small.scales is not None:
            self._windows.put_joined(panel, small.scales, small.num_panels)
            self._widen_if_wide()
        if self.scales is not None and small.scales is not None:
            at = slice(panel, last) if self.format.kernel_group else slice(panel * PANEL, last * PANEL)
            self.scales[:, at] = small.scales
        if self.zeros is not None and small.zeros is not None:
            self.zeros[:, panel:last] = small.zeros

    def _room(self, memory: Tensor | None = None) -> Tensor:
        """For the panels."""
        shape = (1, *data_shape(self.format.kernel, -(-self.rows // PANEL), self.cols))
        if memory is not None:
            return memory[: prod(shape)].view(shape)
        data = empty_bytes(shape, self.device)
        touch_behind(data)
        return data

    def _widen_if_wide(self) -> None:
        assert self._windows is not None
        if not self._windows.too_many:
            return
        windows, narrow = self._windows, self.data[0]
        self._windows, self.format = None, self.format.read_as
        self.data = self._room()
        for first, last, found in widened(narrow, windows, self.data.shape[2]):
            self.data[0, first:last] = found

    def finish(self, dtype: torch.dtype) -> PackedMatrix:
        assert not self._edges, "rows are missing"
        fmt, scales = self.format, self.scales if self._windows is None else self._windows.joined()
        packed = PackedWeight(fmt.kernel, self.rows, self.cols, self.data, scales, self.zeros, fmt.kernel_group, 1)
        return PanelMatrix(fmt, packed, dtype)

    @property
    def nbytes(self) -> int:
        held = sum(t.nbytes for t in (self.data, self.scales, self.zeros) if t is not None)
        return held + (0 if self._windows is None else self._windows.nbytes)

    @property
    def beyond_bytes(self) -> int:
        return max(0, self.nbytes - self._promised)


def copying_threads() -> int:
    """For rows that are only moved: all but one. With both of two cores in this, reads were resumed late and the disk
    idled (0.53 of its rate on a busy machine, 0.70 with one core left, in turns).
    """
    return max(1, torch.get_num_threads() - 1)


def in_panels(scales: Tensor | None) -> Tensor | None:
    """Rows filled up with zeros to whole panels."""
    if scales is None or scales.shape[0] % PANEL == 0:
        return scales
    full = scales.new_zeros(-(-scales.shape[0] // PANEL) * PANEL, *scales.shape[1:])
    full[: scales.shape[0]] = scales
    return full


def _cut(tensor: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if tensor is None else tensor[start:stop]
