"""The header of a safetensors file, read and checked before a byte of weights is trusted. No torch.

Layout of a file (https://huggingface.co/docs/safetensors)::

    [ u64 little endian: n ][ n bytes of JSON, padded with spaces ][ data: the tensors' bytes ]
      JSON: {"name": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [begin, end]}, "__metadata__": {...}}
      offsets count from the start of the data
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from pagoda.core.errors import WeightsError, choices

DTYPE_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
METADATA = "__metadata__"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit; a larger number means that this is another kind of file


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: ``num_bytes`` bytes at ``offset`` (absolute) of ``file``."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    def rows(self, start: int, stop: int) -> TensorEntry:
        """Rows ``start:stop`` of it: the first dimension's slices lie one after the other."""
        row_bytes = self.num_bytes // self.shape[0]
        shape, offset = (stop - start, *self.shape[1:]), self.offset + start * row_bytes
        return replace(self, shape=shape, offset=offset, num_bytes=(stop - start) * row_bytes)


def are_halves(entries: Iterable[TensorEntry]) -> bool:
    """Whether all matrices of a checkpoint are stored in float16, and it has some."""
    matrices = [entry.dtype for entry in entries if len(entry.shape) > 1]
    return bool(matrices) and set(matrices) == {"F16"}


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, in the order of their bytes. Raises WeightsError naming the file and the tensor."""
    header, data_start, file_bytes = _read_json(file)
    header.pop(METADATA, None)
    entries = [_entry(file, name, spec, data_start, file_bytes) for name, spec in header.items()]
    entries.sort(key=lambda e: (e.offset, e.num_bytes))
    _check_overlap(file, entries)
    return {e.name: e for e in entries}


def read_metadata(file: Path) -> dict[str, str]:
    """The texts in a file's header. Raises WeightsError naming the file."""
    found = _read_json(file)[0].get(METADATA, {})
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _read_json(file: Path) -> tuple[dict[str, Any], int, int]:
    """The header's object, where the data begins, and how long the file is."""
    raw, data_start, file_bytes = _header_bytes(file)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: the safetensors header is not valid JSON ({error}); download it again") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: the safetensors header is not a JSON object; download the file again")
    return header, data_start, file_bytes


def _header_bytes(file: Path) -> tuple[bytes, int, int]:
    try:
        with open(file, "rb") as f:
            file_bytes = os.fstat(f.fileno()).st_size
            start = f.read(8)
            if start == b"version ":
                raise WeightsError(f"{file}: a git-lfs pointer, not the weights themselves; run `git lfs pull` there")
            if len(start) < 8:
                raise WeightsError(f"{file}: truncated ({file_bytes} bytes, no header); download it again")
            (num_bytes,) = struct.unpack("<Q", start)
            if num_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise WeightsError(
                    f"{file}: not a safetensors file, or truncated: its header claims {num_bytes} bytes "
                    f"and the file has {file_bytes}; download it again"
                )
            return f.read(num_bytes), 8 + num_bytes, file_bytes
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror or error})") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return found


def _entry(file: Path, name: str, spec: Any, data_start: int, file_bytes: int) -> TensorEntry:
    where = f"{file}: tensor {name!r}"
    if not isinstance(spec, dict) or not {"dtype", "shape", "data_offsets"} <= spec.keys():
        raise WeightsError(f"{where} needs dtype, shape and data_offsets; got {spec!r}")
    dtype, shape, offsets = spec["dtype"], spec["shape"], spec["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_SIZES:
        raise WeightsError(f"{where}: {choices('dtype', dtype, DTYPE_SIZES)}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise WeightsError(f"{where}: shape {shape!r} and data_offsets {offsets!r} must be lists of whole numbers >= 0")
    begin, end = offsets
    expected = math.prod(shape) * DTYPE_SIZES[dtype]
    if end - begin != expected:
        raise WeightsError(f"{where}: {dtype} of shape {shape} takes {expected} bytes, data_offsets give {end - begin}")
    if data_start + end > file_bytes:
        missing = data_start + end - file_bytes
        raise WeightsError(f"{where} ends {missing} bytes after the end of the file: truncated; download it again")
    return TensorEntry(name, file, dtype, tuple(shape), data_start + begin, expected)


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _check_overlap(file: Path, entries: list[TensorEntry]) -> None:
    filled = [e for e in entries if e.num_bytes]
    for before, after in pairwise(filled):
        if before.offset + before.num_bytes > after.offset:
            raise WeightsError(f"{file}: tensors {before.name!r} and {after.name!r} overlap; download the file again")
