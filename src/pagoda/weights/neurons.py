"""Neurons of feed-forward layers that stay on disk: those that tokens activate are read, and stay for tokens to come.

*LLM in a flash* (https://arxiv.org/abs/2312.11514): a ReLU leaves most neurons of a layer at zero, so only the others'
weights are needed. All weights of a neuron lie side by side in the file (row-column bundling, 3.2), one read for both.
Neurons stay in memory until their room is needed, those go first that were active for no token the longest (windowing,
3.1; the window is as long as the memory allows, where the paper fixes the last k tokens).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import WeightsError
from .direct import aligned_buffer, span_bytes
from .header import TensorEntry
from .reader import Checkpoint, torch_dtype

Ids = NDArray[np.int64]

NUM_READERS = 16
"""Reads at once: a neuron is a few kilobytes, and a disk is as fast with those as many of them are under way."""
RUN_BYTES = 256 << 10  # of neighbours that are read together


@dataclass(slots=True)
class NeuronCounters:
    """Neurons active in a step: found in memory, and read. ``dense_bytes``: what reading all would have been."""

    hits: int = 0
    misses: int = 0
    num_reads: int = 0
    bytes_read: int = 0
    dense_bytes: int = 0


class _Window:
    """One layer's neurons in memory: ``slot_of`` every neuron (-1: none), and which neuron a slot holds, since when."""

    def __init__(self, num_neurons: int, num_slots: int) -> None:
        self.slot_of = np.full(num_neurons, -1, np.int64)
        self.holds = np.full(num_slots, -1, np.int64)
        self.used_at = np.full(num_slots, -1, np.int64)

    def place(self, ids: Ids, clock: int) -> Ids:
        """Slots for all of ``ids`` (not more than there are); returns those that have to be read."""
        here = self.slot_of[ids]
        self.used_at[here[here >= 0]] = clock
        missing = ids[here < 0]
        if len(missing):
            # Slots of this step have the newest clock, so the oldest ones are never among what is asked for now.
            oldest = np.argpartition(self.used_at, len(missing) - 1)[: len(missing)]
            gone = self.holds[oldest]
            self.slot_of[gone[gone >= 0]] = -1
            self.holds[oldest], self.slot_of[missing], self.used_at[oldest] = missing, oldest, clock
        return missing

    def forget(self, ids: Ids) -> None:
        """Their read failed."""
        slots = self.slot_of[ids]
        self.holds[slots], self.used_at[slots], self.slot_of[ids] = -1, -1, -1


class NeuronCache:
    """``layers``: a tensor ``[neurons, width]`` of the file each. ``slots``: neurons of a layer in memory at once."""

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[TensorEntry], slots: int) -> None:
        self._layers, self.slots = list(layers), slots
        self._files = checkpoint.open_files(use_cache=False)
        self._files.open_all()
        self._windows = [_Window(entry.shape[0], slots) for entry in layers]
        dtype = torch_dtype(layers[0].dtype)
        self._rows = [torch.zeros(slots, entry.shape[1], dtype=dtype) for entry in layers]
        self._local, self._clock, self._closed = threading.local(), 0, False
        self._pool = ThreadPoolExecutor(NUM_READERS, "pagoda-neurons", self._make_buffer)
        self.counters = NeuronCounters()
        self.num_bytes = cache_bytes([entry.num_bytes // entry.shape[0] for entry in layers], slots)

    def step(self, layer: int) -> None:
        """Counts what a layer's step would have read without a cache."""
        self.counters.dense_bytes += self._layers[layer].num_bytes

    def rows(self, layer: int, ids: Ids) -> Tensor:
        """Weights of neurons ``ids`` (ascending, at most ``slots``): ``[len(ids), width]``.

        Raises WeightsError naming file and tensor.
        """
        if self._closed:
            raise WeightsError("the model is closed; its neurons are no longer read")
        window, rows = self._windows[layer], self._rows[layer]
        self._clock += 1
        missing = window.place(ids, self._clock)
        try:
            self._read(layer, missing)
        except BaseException:
            window.forget(missing)
            raise
        self.counters.misses += len(missing)
        self.counters.hits += len(ids) - len(missing)
        return rows.index_select(0, torch.from_numpy(window.slot_of[ids]))

    def _read(self, layer: int, missing: Ids) -> None:
        if not len(missing):
            return
        entry = self._layers[layer]
        row_bytes = entry.num_bytes // entry.shape[0]
        runs = neighbours(missing, max(1, RUN_BYTES // row_bytes))
        self.counters.num_reads += len(runs)
        self.counters.bytes_read += len(missing) * row_bytes
        jobs = [runs[n::NUM_READERS] for n in range(min(NUM_READERS, len(runs)))]
        for _ in self._pool.map(lambda part: self._read_runs(layer, part), jobs):
            pass
        self._files.check([entry])

    def _read_runs(self, layer: int, runs: Sequence[tuple[int, int]]) -> None:
        entry, rows, slot_of = self._layers[layer], self._rows[layer], self._windows[layer].slot_of
        row_bytes = entry.num_bytes // entry.shape[0]
        for first, count in runs:
            raw = self._files.read_range(entry, entry.offset + first * row_bytes, count * row_bytes, self._local.buffer)
            raw = raw.clone() if raw.storage_offset() % rows.element_size() else raw
            slots = torch.from_numpy(slot_of[first : first + count])
            rows.index_copy_(0, slots, raw.view(rows.dtype).view(count, -1))

    def _make_buffer(self) -> None:
        widest = max(entry.num_bytes // entry.shape[0] for entry in self._layers)
        self._local.buffer = aligned_buffer(span_bytes(max(RUN_BYTES, widest)))

    def close(self) -> None:
        """Ends the threads, closes the files, lets the rows go. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._pool.shutdown()
            self._files.close()
            self._rows.clear()


def neighbours(ids: Ids, most: int) -> list[tuple[int, int]]:
    """(first, count) of ascending ids that follow on one another, at most ``most`` together."""
    runs: list[tuple[int, int]] = []
    for part in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1):
        runs += [(int(part[at]), min(most, len(part) - at)) for at in range(0, len(part), most)]
    return runs


def cache_bytes(row_bytes: Sequence[int], slots: int) -> int:
    """Memory of a cache: rows of all layers, what says where they are, and the readers' buffers."""
    spans = NUM_READERS * span_bytes(max(RUN_BYTES, *row_bytes))
    return sum(slots * (size + 2 * 8) for size in row_bytes) + spans
