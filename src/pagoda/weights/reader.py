"""Reads a checkpoint tensor by tensor, so that loading takes the model plus one tensor and not the model twice.

Tensors are read into a buffer of our own, past the page cache. A mapped file would be simpler, but its touched pages
count towards the process's RSS next to the model's own copy: the peak would be twice the model, and the budget is a
promise. All tensors of a stream pass through one ring, and the next ones are read into what is free of it while the
last one is packed. Large ones may come some rows at a time: the ring is small then, and reading never waits for long.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pagoda.core.errors import WeightsError

from .ahead import Fill, ReadAhead
from .direct import ALIGN, DirectFile, Stamp, aligned_buffer, span_bytes
from .header import DTYPE_SIZES, TensorEntry, read_header

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "consolidated.00.pth")
RING_BYTES = 96 << 20  # that reading is ahead by: at 32 MiB reads waited for packing (0.77 of the disk, 0.86 now)
AHEAD_BYTES = 4 << 20  # of the ring beside its largest piece, where that alone fills it
NUM_READERS = 2  # the disk has work while one thread waits for its turn


class Checkpoint:
    """The tensors of one model folder. ``entries`` are in reading order: file by file, by offset.

    Opening reads headers only; damage that shows in them raises WeightsError then, before memory is spent.
    """

    def __init__(self, folder: Path, entries: dict[str, TensorEntry]) -> None:
        self.folder, self.entries = folder, entries
        self._stamps = {file: Stamp.of(os.stat(file)) for file in self.files}

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Finds ``model.safetensors`` or the sharded index in ``folder``. Raises WeightsError naming what is wrong."""
        folder = Path(folder)
        if (folder / SINGLE).is_file():
            return cls(folder, read_header(folder / SINGLE))
        if (folder / INDEX).is_file():
            return cls(folder, _sharded(folder))
        return cls(folder, read_header(_lone_file(folder)))

    @property
    def files(self) -> list[Path]:
        return sorted({entry.file for entry in self.entries.values()})

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as they lie on disk."""
        return sum(entry.num_bytes for entry in self.entries.values())

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor on disk: what loading needs beside the model."""
        return max((entry.num_bytes for entry in self.entries.values()), default=0)

    def open_files(self, *, use_cache: bool) -> OpenFiles:
        """The files, for reads of other pieces than whole tensors."""
        return OpenFiles(self._stamps, use_cache=use_cache)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in its own memory and its own dtype, on the CPU."""
        entry = self._entry(name)
        with OpenFiles(self._stamps, use_cache=True) as files:
            raw = files.read(entry, aligned_buffer(staging_bytes([entry])))
            files.check([entry])
        return tensor_of(entry, raw).clone()

    def stream(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor once, or those of ``names`` in their order; by default as they lie on disk.

        Each is valid until the next is asked for: copy what is to stay. Raises WeightsError naming file and tensor,
        also for a file that is no longer what it was when its header was read.
        """
        order = list(self.entries) if names is None else list(names)
        for name, tensors in zip(order, self.stream_groups([(name,) for name in order]), strict=True):
            yield name, tensors[name]

    def stream_groups(self, groups: Sequence[Sequence[str]]) -> Iterator[dict[str, torch.Tensor]]:
        """As ``stream``, several tensors at a time: name -> tensor. The next are read while these are used."""
        return self.stream_entries([[self._entry(name) for name in group] for group in groups])

    def stream_entries(self, groups: Sequence[Sequence[TensorEntry]]) -> Iterator[dict[str, torch.Tensor]]:
        """As ``stream_groups``, by entries of this checkpoint's tensors, or of some rows of them."""
        sizes = [staging_bytes(group) for group in groups]
        with OpenFiles(self._stamps, use_cache=True) as files:
            files.open_all()
            buffer = aligned_buffer(ring_bytes(sizes))
            ahead = ReadAhead(sizes, buffer, files.filling(groups), num_threads=NUM_READERS)
            try:
                for group, raw in zip(groups, ahead, strict=True):
                    files.check(group)
                    yield {e.name: tensor_of(e, part) for e, part in _parts(group, raw)}
            finally:
                ahead.close()

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise WeightsError(f"{self.folder}: the checkpoint has no tensor {name!r}")
        return self.entries[name]


class OpenFiles:
    """The files of a checkpoint, opened when first read from, closed together."""

    def __init__(self, stamps: dict[Path, Stamp], *, use_cache: bool) -> None:
        self._stamps, self._use_cache, self._open = stamps, use_cache, dict[Path, DirectFile]()

    def open_all(self) -> None:
        """Before several threads read."""
        for path in self._stamps:
            self._file(path)

    def _file(self, path: Path) -> DirectFile:
        if path not in self._open:
            self._open[path] = DirectFile(path, use_cache=self._use_cache)
        return self._open[path]

    def filling(self, groups: Sequence[Sequence[TensorEntry]]) -> Fill:
        """What a read-ahead calls: every tensor of a group, one after the other."""

        def fill(index: int, buffer: torch.Tensor) -> None:
            start = 0
            for entry in groups[index]:
                self.read(entry, buffer[start:])
                start += span_bytes(entry.num_bytes)

        return fill

    def read(self, entry: TensorEntry, buffer: torch.Tensor) -> torch.Tensor:
        """The tensor's bytes, somewhere in ``buffer``."""
        return self.read_range(entry, entry.offset, entry.num_bytes, buffer)

    def read_range(self, entry: TensorEntry, offset: int, num_bytes: int, buffer: torch.Tensor) -> torch.Tensor:
        """Some of the tensor's bytes, by where they lie in its file."""
        return self._file(entry.file).read(offset, num_bytes, buffer, f"tensor {entry.name!r}")

    def check(self, group: Iterable[TensorEntry]) -> None:
        """Raises WeightsError if a file is no longer what it was when its header was read."""
        for entry in group:
            if entry.file in self._open and self._open[entry.file].stamp != self._stamps[entry.file]:
                raise WeightsError(f"{entry.file}: changed while tensor {entry.name!r} was read; load it again")

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """A second call does nothing."""
        while self._open:
            self._open.popitem()[1].close()


def ring_bytes(sizes: Sequence[int]) -> int:
    """The buffer that groups of these ``staging_bytes`` pass through."""
    largest = max(sizes, default=0)
    return max(largest + min(largest // 16, AHEAD_BYTES), min(sum(sizes) // 8, RING_BYTES))


def staging_bytes(group: Iterable[TensorEntry]) -> int:
    """Room for these tensors as they are read."""
    return sum(span_bytes(entry.num_bytes) for entry in group)


def _parts(group: Iterable[TensorEntry], raw: torch.Tensor) -> Iterator[tuple[TensorEntry, torch.Tensor]]:
    """Each tensor's bytes in a group that was read."""
    start = 0
    for entry in group:
        first = start + entry.offset % ALIGN
        yield entry, raw[first : first + entry.num_bytes]
        start += span_bytes(entry.num_bytes)


def tensor_of(entry: TensorEntry, raw: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, or of some of its rows, as what they are."""
    dtype = torch_dtype(entry.dtype)
    if entry.offset % dtype.itemsize:  # the format does not ask for aligned data, only all writers do it
        raw = raw.clone()
    return raw.view(dtype).reshape(entry.shape)


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a torch dtype."""
    return next(name for name in DTYPE_SIZES if torch_dtype(name) == dtype)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name."""
    import torch

    return {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
        "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    }[name]  # fmt: skip


def _sharded(folder: Path) -> dict[str, TensorEntry]:
    index = folder / INDEX
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: needs a weight_map of tensor names to files ({error}); fetch it again") from error
    headers = {shard: _shard_header(index, shard) for shard in shards}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise WeightsError(f"{index}: tensor {name!r} should be in {shard}, which does not have it")
    # A tensor that lies in a shard but is not in the index does not belong to the model: the index is the list.
    wanted = set(weight_map.items())
    return {n: e for shard, header in headers.items() for n, e in header.items() if (n, shard) in wanted}


def _shard_header(index: Path, shard: object) -> dict[str, TensorEntry]:
    if not isinstance(shard, str) or Path(shard).name != shard:
        raise WeightsError(f"{index}: a shard must be a plain file name in the same folder, got {shard!r}")
    if not (index.parent / shard).is_file():
        raise WeightsError(f"{index.parent}: shard {shard} is missing (named by {index.name}); download it")
    return read_header(index.parent / shard)


def _lone_file(folder: Path) -> Path:
    found = sorted(f for f in folder.glob("*.safetensors") if not f.name.startswith("consolidated"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f.name for f in found[:4])
        raise WeightsError(f"{folder}: several safetensors files ({names}) and no {INDEX} that says what is in which")
    for name in _PICKLES:
        if (folder / name).exists():
            raise WeightsError(
                f"{folder}: the weights are {name}, a pickle that can run code when it is read; convert it to "
                f"safetensors first (for example with transformers: save_pretrained writes {SINGLE})"
            )
    raise WeightsError(f"{folder}: no weights; expected {SINGLE}, or {INDEX} with its shards")
