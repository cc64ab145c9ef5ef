"""Writes tensors to a safetensors file so that nobody ever sees half of it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import WeightsError
from .direct import ALIGN
from .header import DTYPE_SIZES, METADATA

if TYPE_CHECKING:
    from torch import Tensor

HUGE_BYTES = 2 << 20  # as kernels.memory has it


def write_tensors(file: Path, tensors: Mapping[str, Tensor], notes: str = "") -> None:
    """All of ``tensors`` into ``file``, under another name until they are complete and on disk; ``notes`` go into its
    metadata. Raises WeightsError.
    """
    from safetensors.torch import save_file

    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        save_file(dict(tensors), unfinished, {"notes": notes} if notes else None)  # of several the order is any
        with open(unfinished, "rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise WeightsError(f"{file}: cannot be written ({error.strerror or error})") from error


def write_stream(file: Path, entries: Sequence[tuple[str, str, tuple[int, ...]]], tensors: Iterable[Tensor]) -> None:
    """As `write_tensors`, one tensor after another: name, safetensors dtype and shape of each are known before.

    The first begins on a page, so that rows of whole pages are read with no neighbour's bytes. Raises WeightsError.
    """
    with TensorWriter(file, entries) as out:
        for (name, *_), tensor in zip(entries, tensors, strict=True):
            out.put(name, tensor)


class TensorWriter:
    """A safetensors file whose tensors come in any order: name, safetensors dtype and shape of each are known before.

    It has its name when the ``with`` ends well, with all of them written, and does not exist before. Raises
    WeightsError.

    ``metadata``: texts that stand in the header. ``cached``: its pages stay in the system's cache, for who maps it;
    tensors come in order then.
    """

    def __init__(
        self, file: Path, entries: Sequence[tuple[str, str, tuple[int, ...]]], *,
        metadata: Mapping[str, str] | None = None, cached: bool = False,
    ) -> None:  # fmt: skip
        self._file, self._unfinished, self._cached = file, file.with_name(f".{file.name}.unfinished"), cached
        header, at = dict[str, Any](), 0
        for name, dtype, shape in entries:
            end = at + prod(shape) * DTYPE_SIZES[dtype]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps({METADATA: dict(metadata)} | header if metadata else header).encode()
        text += b" " * (-(8 + len(text)) % ALIGN)
        self._places = {
            name: (8 + len(text) + found["data_offsets"][0], found["shape"]) for name, found in header.items()
        }
        self._head = struct.pack("<Q", len(text)) + text

    def __enter__(self) -> TensorWriter:
        with self._named():
            self._out = _Pieces(self._unfinished) if self._cached else open(self._unfinished, "wb")
            self._out.write(self._head)
        return self

    def put(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor to its place. Raises KeyError for one that is unknown, or has been written."""
        import torch

        at, shape = self._places.pop(name)
        assert list(tensor.shape) == shape, f"{name}: {list(tensor.shape)} is not {shape}"
        with self._named():
            self._out.seek(at)
            self._out.write(memoryview(tensor.contiguous().view(torch.uint8).numpy()))  # type: ignore[arg-type]

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self._named():
                with self._out:
                    if kind is None:
                        assert not self._places, f"not written: {sorted(self._places)}"
                        self._out.flush()
                        os.fsync(self._out.fileno())
                        if not self._cached:  # nobody reads it from there
                            os.posix_fadvise(self._out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if kind is None:
                    self._unfinished.replace(self._file)
        finally:
            self._unfinished.unlink(missing_ok=True)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._unfinished.unlink(missing_ok=True)
            raise WeightsError(f"{self._file}: cannot be written ({error.strerror or error})") from error


class _Pieces:
    """A file written from front to back in pieces that are huge pages of it, on which the system's cache keeps it then.

    Written tensor by tensor, 1280 MiB of 2357 lay on huge pages, and a step of one sequence that read them mapped took
    1.29 of its time in memory; in pieces all of it does, and a step takes 1.01.
    """

    def __init__(self, file: Path) -> None:
        self._raw = open(file, "wb", buffering=0)  # noqa: SIM115 - closed with this
        self._piece, self._at = bytearray(), 0

    def seek(self, at: int) -> None:
        assert at == self._at, "tensors of a file that is mapped come in order"

    def write(self, data: bytes | memoryview) -> None:
        view, start = memoryview(data).cast("B"), 0
        while start < len(view):
            count = min(HUGE_BYTES - len(self._piece), len(view) - start)
            self._piece += view[start : start + count]
            start += count
            if len(self._piece) == HUGE_BYTES:
                self.flush()
        self._at += len(view)

    def flush(self) -> None:
        left = memoryview(self._piece)
        while left:
            left = left[self._raw.write(left) :]
        self._piece = bytearray()

    def fileno(self) -> int:
        return self._raw.fileno()

    def __enter__(self) -> _Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()
