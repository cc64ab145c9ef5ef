"""Reads a checkpoint tensor by tensor, so that loading takes the model plus one tensor and not the model twice.

Tensors are read with ``pread``. A mapped file would be simpler, but its touched pages count towards the process's RSS
next to the model's own copy: the peak would be twice the model, and the budget is a promise. All tensors of a stream
pass through one buffer: with a fresh one each, a 235 MB model peaked at 289 MB (the allocator keeps what was freed),
with one buffer at 252 MB, which is the model and its largest tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagoda.core.errors import WeightsError

from .header import TensorEntry, read_header

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "consolidated.00.pth")
_READ_BYTES = 1 << 28  # one pread call stays below the kernel's 2 GiB limit


class Checkpoint:
    """The tensors of one model folder. ``entries`` are in reading order: file by file, by offset.

    Opening reads headers only; damage that shows in them raises WeightsError then, before memory is spent.
    """

    def __init__(self, folder: Path, entries: dict[str, TensorEntry]) -> None:
        self.folder, self.entries = folder, entries
        self._stamps = {file: _stamp(os.stat(file)) for file in self.files}

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

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in its own memory and its own dtype, on the CPU."""
        with _OpenFiles(self._stamps) as files:
            return files.read(self._entry(name))

    def stream(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor once, or those of ``names`` in their order; by default as they lie on disk.

        Each is valid until the next is asked for: copy what is to stay. Raises WeightsError naming file and tensor,
        also for a file that is no longer what it was when its header was read.
        """
        order = list(self.entries) if names is None else list(names)
        for name, tensors in zip(order, self.stream_groups([(name,) for name in order]), strict=True):
            yield name, tensors[name]

    def stream_groups(self, groups: Sequence[Sequence[str]]) -> Iterator[dict[str, torch.Tensor]]:
        """As ``stream``, several tensors at a time: name -> tensor, all in one buffer."""
        wanted = [[self._entry(name) for name in group] for group in groups]
        sizes = [sum(_aligned(entry.num_bytes) for entry in group) for group in wanted]
        buffer = _buffer(max(sizes, default=0))
        with _OpenFiles(self._stamps) as files:
            for group in wanted:
                starts = accumulate((_aligned(entry.num_bytes) for entry in group), initial=0)
                yield {e.name: files.read(e, buffer[start:]) for e, start in zip(group, starts, strict=False)}

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise WeightsError(f"{self.folder}: the checkpoint has no tensor {name!r}")
        return self.entries[name]


class _OpenFiles:
    """The files of a checkpoint, opened when first read from, closed together."""

    def __init__(self, stamps: dict[Path, tuple[int, ...]]) -> None:
        self._stamps, self._fds = stamps, dict[Path, int]()

    def read(self, entry: TensorEntry, buffer: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor, at the start of ``buffer`` or in memory of its own."""
        fd = self._fds.get(entry.file)
        if fd is None:
            self._fds[entry.file] = fd = _open(entry.file)
        tensor = _read(fd, entry, _buffer(entry.num_bytes) if buffer is None else buffer)
        if _stamp(os.fstat(fd)) != self._stamps[entry.file]:
            raise WeightsError(f"{entry.file}: changed while tensor {entry.name!r} was read; load it again")
        return tensor

    def __enter__(self) -> _OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror})") from error


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written to, or another one takes its place."""
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _aligned(num_bytes: int) -> int:
    """Room for a tensor so that the next one begins where any type may begin."""
    return -(-num_bytes // 64) * 64


def _buffer(num_bytes: int) -> torch.Tensor:
    import torch

    return torch.empty(num_bytes, dtype=torch.uint8)


def _read(fd: int, entry: TensorEntry, buffer: torch.Tensor) -> torch.Tensor:
    """Fills the start of ``buffer`` with the tensor's bytes and returns that part as the tensor."""
    buffer = buffer[: entry.num_bytes]
    view: Any = buffer.numpy()  # the same bytes, as something that the system can write into
    done = 0
    while done < entry.num_bytes:
        try:
            got = os.preadv(fd, [view[done : done + _READ_BYTES]], entry.offset + done)
        except OSError as error:
            raise WeightsError(f"{entry.file}: tensor {entry.name!r} cannot be read ({error.strerror})") from error
        if not got:
            raise WeightsError(f"{entry.file}: tensor {entry.name!r} ends early: the file became shorter while read")
        done += got
    return buffer.view(torch_dtype(entry.dtype)).reshape(entry.shape)


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
