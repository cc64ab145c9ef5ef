"""Matrices that lie on disk in the kernels' own order, panel after panel (`models.packed_file`). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..kernels.packed_bytes import PANEL, bytes_of_panel
from .formats.base import WeightFormat
from .header import TensorEntry
from .rows import UNIT_BYTES, OnDisk, Unit


@dataclass(frozen=True, slots=True)
class PanelRows:
    """A whole matrix in ``format``; ``data`` are its panels, ``beside`` the scales and zero points that stay in memory.
    ``counted``: its bytes in memory, as plans count them before a number is seen.
    """

    format: WeightFormat
    rows: int
    cols: int
    data: TensorEntry
    beside: Mapping[str, TensorEntry]
    counted: int

    @property
    def panel_bytes(self) -> int:
        return bytes_of_panel(self.format.kernel, self.cols)

    def on_disk(self) -> OnDisk:
        """What streaming it takes: its panels, read and multiplied where they lie in the ring."""
        unit = max(num_bytes for one in self.units() for _, _, num_bytes, _ in one.parts)
        kept = sum(entry.num_bytes for entry in self.beside.values())
        return OnDisk(saved=self.counted - kept, read=self.data.num_bytes, unit=unit, panels=0)

    def units(self, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
        """The matrix in pieces of at most ``unit_bytes``, whole panels each."""
        step = max(1, unit_bytes // self.panel_bytes) * PANEL
        return [self.unit(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def unit(self, start: int, stop: int) -> Unit:
        """Rows ``start:stop``, which are whole panels."""
        first, last = start // PANEL, -(-stop // PANEL)
        offset, num_bytes = self.data.offset + first * self.panel_bytes, (last - first) * self.panel_bytes
        return Unit(start, stop, ((self.data, offset, num_bytes, stop - start),))
