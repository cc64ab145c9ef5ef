"""Experts on disk, each in formats of its own: how one is read into memory, part by part, and what kernels see there.

    an expert in memory   | panels of gate_up | panels of down | scales, zeros of gate_up | scales, zeros of down |

What lies side by side in a file is read at once; `pagoda quantize` writes a matrix's scales behind its codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from ..kernels.lay_out import panel_bytes
from ..kernels.packed import PackedWeight
from ..kernels.packed_bytes import PANEL
from .direct import aligned_buffer, span_bytes
from .expert_policies import Key
from .fillings.scales import scales_by_panel
from .header import TensorEntry
from .packed import PanelMatrix
from .reader import Checkpoint, tensor_of
from .rows import StoredMatrix, Unit, part_bytes
from .streaming import converted_bytes, lay_out_unit

Read = tuple[TensorEntry, int, int]
"""A tensor, the first byte in its file, and how many."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some rows of one matrix, and where in the expert's memory their panels begin; with the last rows come scales and
    zero points. ``runs``: reads that lie side by side.
    """

    place: _Place
    unit: Unit
    at: int
    beside: tuple[str, ...]
    runs: tuple[tuple[Read, ...], ...]


class ExpertStore:
    """The ``experts`` of a checkpoint, for a model that computes in ``dtype``. Reads may come from several threads."""

    def __init__(
        self, experts: Mapping[Key, Sequence[StoredMatrix]], checkpoint: Checkpoint, dtype: torch.dtype
    ) -> None:
        self._dtype, self._files = dtype, checkpoint.open_files(use_cache=False)
        self._files.open_all()
        self._places = {key: _places(matrices) for key, matrices in experts.items()}
        self.num_bytes = {key: sum(m.num_bytes for m in matrices) for key, matrices in experts.items()}
        self.parts = {key: _parts(places) for key, places in self._places.items()}

    @property
    def buffer_bytes(self) -> int:
        """What one part at most passes through."""
        return max(sum(map(_span, part.runs)) for parts in self.parts.values() for part in parts)

    @property
    def converted_bytes(self) -> int:
        """What is converted of one part at a time, at most."""
        return converted_bytes(place.matrix.rows for places in self._places.values() for place in places)

    def read(self, part: Part, memory: Tensor, buffer: Tensor) -> int:
        """Fills the part's place in the expert's ``memory`` (uint8). Returns the bytes read.

        Raises WeightsError naming file and tensor.
        """
        start, raw = 0, list[Tensor]()
        for run in part.runs:
            entry, first, _ = run[0]
            found = self._files.read_range(entry, first, _length(run), buffer[start:])
            raw += [found[offset - first :][:num_bytes] for _, offset, num_bytes in run]
            start += _span(run)
        self._files.check(run[0][0] for run in part.runs)
        stored, rows = part.place.matrix, len(part.unit.parts)
        lay_out_unit(stored.rows, part.unit, raw[:rows], memory[part.at :])
        for kind, values in zip(part.beside, raw[rows:], strict=True):
            place = part.place.view(kind, memory)
            laid = scales_by_panel(tensor_of(stored.beside[kind], values), stored.format.kernel_group)
            place.copy_(laid.view(place.shape))
        return sum(map(_length, part.runs))

    def matrices(self, key: Key, memory: Tensor) -> list[PanelMatrix]:
        """An expert in its memory."""
        found = []
        for place in self._places[key]:
            stored, rows = place.matrix, place.matrix.rows
            panels = memory[place.at : place.at + place.panel_bytes].view(1, -(-rows.rows // PANEL), -1, PANEL * 4)
            scales, zeros = (place.view(k, memory) if k in place.beside else None for k in ("scale", "zero"))
            group = stored.format.kernel_group
            packed = PackedWeight(rows.kernel, rows.rows, rows.cols, panels, scales, zeros, group, experts=1)
            found.append(PanelMatrix(stored.format, packed, self._dtype))
        return found

    def close(self) -> None:
        """A second call does nothing."""
        self._files.close()


class ExpertMemory:
    """``num_bytes`` for experts of several sizes: what comes back serves another of its size, or makes room for one of
    another size by going back to the system. Nothing is moved, and nothing is lost between pieces.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = self._left = num_bytes
        self._unused: dict[int, list[Tensor]] = {}

    def take(self, num_bytes: int) -> Tensor | None:
        """uint8 of that size; None where others have the room."""
        if self._unused.get(num_bytes):
            return self._unused[num_bytes].pop()
        while self._left < num_bytes and self._shrink():
            pass
        if self._left < num_bytes:
            return None
        self._left -= num_bytes
        return aligned_buffer(num_bytes)[:num_bytes]

    def give_back(self, memory: Tensor) -> None:
        """Nobody else may hold it any more."""
        self._unused.setdefault(memory.nbytes, []).append(memory)

    def _shrink(self) -> bool:
        for size, pieces in self._unused.items():
            if pieces:
                pieces.pop()
                self._left += size
                return True
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where one matrix lies in its expert's memory; ``beside``: first byte, shape and type of scales and zeros."""

    matrix: StoredMatrix
    at: int
    panel_bytes: int
    beside: Mapping[str, tuple[int, tuple[int, ...], torch.dtype]]

    def view(self, kind: str, memory: Tensor) -> Tensor:
        at, shape, dtype = self.beside[kind]
        return memory[at : at + prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _places(matrices: Sequence[StoredMatrix]) -> list[_Place]:
    found, at = [], 0
    after = sum(panel_bytes(m.rows.kernel, m.rows.rows, m.rows.cols) for m in matrices)
    for m in matrices:
        rows, cols = m.rows.rows, m.rows.cols
        own, panels, beside = panel_bytes(m.rows.kernel, rows, cols), -(-rows // PANEL), {}
        for kind in m.format.beside:
            shape, dtype = m.format.parts(rows, cols)[kind]
            by_panel = (1, panels, shape[1], PANEL) if m.format.kernel_group else (1, panels * PANEL)
            beside[kind] = after, by_panel, getattr(torch, dtype)
            after += prod(by_panel) * getattr(torch, dtype).itemsize
        found.append(_Place(m, at, own, beside))
        at += own
    assert after == sum(m.num_bytes for m in matrices), "an expert's bytes are not those that its formats declare"
    return found


def _parts(places: Sequence[_Place]) -> list[Part]:
    """An expert cut for its readers."""
    step, found = part_bytes(sum(p.matrix.rows.rows * p.matrix.rows.row_bytes for p in places)), []
    for place in places:
        stored, at = place.matrix, place.at
        for unit in stored.rows.units(step):
            kinds = tuple(place.beside) if unit.stop == stored.rows.rows else ()
            entries = [stored.beside[kind] for kind in kinds]
            reads = [(entry, offset, num_bytes) for entry, offset, num_bytes, _ in unit.parts]
            reads += [(entry, entry.offset, entry.num_bytes) for entry in entries]
            found.append(Part(place, unit, at, kinds, _runs(reads)))
            at += panel_bytes(stored.rows.kernel, unit.stop - unit.start, stored.rows.cols)
    return found


def _runs(reads: Sequence[Read]) -> tuple[tuple[Read, ...], ...]:
    found = [[reads[0]]]
    for (before, offset, num_bytes), read in pairwise(reads):
        if read[0].file == before.file and read[1] == offset + num_bytes:
            found[-1].append(read)
        else:
            found.append([read])
    return tuple(map(tuple, found))


def _length(run: Sequence[Read]) -> int:
    return sum(num_bytes for *_, num_bytes in run)


def _span(run: Sequence[Read]) -> int:
    return span_bytes(_length(run))
