"""The header of a GGUF file, read and checked before a byte of weights is trusted. No torch.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), everything little endian::

    "GGUF"  u32 version  u64 tensors  u64 keys
    keys:     string name, u32 type, value                    a string is u64 length and UTF-8 bytes
    tensors:  string name, u32 dims, u64 sizes (innermost first), u32 type, u64 offset from the start of the data
    data      at the next multiple of general.alignment (32)
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import WeightsError
from .header import TensorEntry

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
MAX_ITEMS = 1 << 24  # of an array, or tensors: a larger number means damage

# Type number -> (name, weights of a block, bytes of a block).
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
UNREAD = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor: its shape, outermost first, its type's name, and where its bytes lie (``entry``, as they are)."""

    shape: tuple[int, ...]
    kind: str
    entry: TensorEntry


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What the file says of itself, and its tensors by name."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(file: Path) -> GGUFHeader:
    """Raises WeightsError naming the file, and the tensor where it is one."""
    try:
        with open(file, "rb") as f:
            return _Reader(file, f, os.fstat(f.fileno()).st_size).header()
    except OSError as error:
        raise WeightsError(f"{file}: cannot be read ({error.strerror or error})") from error


class _Reader:
    def __init__(self, file: Path, f: BinaryIO, num_bytes: int) -> None:
        self.file, self.f, self.num_bytes = file, f, num_bytes

    def header(self) -> GGUFHeader:
        if self.f.read(4) != b"GGUF":
            raise WeightsError(f"{self.file}: not a GGUF file; it does not begin with GGUF")
        version = self.scalar("<I")
        if version not in (2, 3):
            raise WeightsError(f"{self.file}: GGUF version {version}; accepted: 2, 3 (little endian)")
        num_tensors, num_keys = self.count("tensors"), self.count("keys")
        metadata = dict(self.pair() for _ in range(num_keys))
        infos = [self.info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise WeightsError(f"{self.file}: general.alignment is {alignment!r}; expected a number of bytes")
        start = -(-self.f.tell() // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, shape, number, offset in infos:
            if name in tensors:
                raise WeightsError(f"{self.file}: tensor {name!r} stands there twice")
            tensors[name] = self.tensor(name, shape, number, start + offset)
        return GGUFHeader(self.file, metadata, tensors)

    def tensor(self, name: str, shape: tuple[int, ...], number: int, offset: int) -> GGUFTensor:
        if number not in TYPES:
            read = ", ".join(kind for kind, _, _ in TYPES.values())
            given = UNREAD.get(number, number)
            raise WeightsError(f"{self.file}: tensor {name!r} is of type {given}; types that are read: {read}")
        kind, block, size = TYPES[number]
        if not shape or shape[-1] % block:
            have = f"rows of {shape[-1]} weights" if shape else "no dimension"
            raise WeightsError(f"{self.file}: tensor {name!r} has {have}, blocks of {kind} have {block}")
        num_bytes = math.prod(shape) // block * size
        if offset + num_bytes > self.num_bytes:
            missing = offset + num_bytes - self.num_bytes
            raise WeightsError(
                f"{self.file}: truncated; tensor {name!r} ends {missing} bytes after the end of the file"
            )
        plain = block == 1
        stored = shape if plain else (*shape[:-1], shape[-1] // block * size)
        return GGUFTensor(shape, kind, TensorEntry(name, self.file, kind if plain else "U8", stored, offset, num_bytes))

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dims = self.text(), self.scalar("<I")
        if dims > 4:
            raise WeightsError(f"{self.file}: tensor {name!r} has {dims} dimensions; damaged")
        sizes = tuple(self.scalar("<Q") for _ in range(dims))
        return name, sizes[::-1], self.scalar("<I"), self.scalar("<Q")

    def pair(self) -> tuple[str, Any]:
        return self.text(), self.value(self.scalar("<I"))

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise WeightsError(f"{self.file}: a value of the unknown type {kind}; damaged, or of a newer version")
        inner, count = self.scalar("<I"), self.count("items")
        if inner not in _SCALARS:
            return [self.value(inner) for _ in range(count)]
        form = _SCALARS[inner]
        return list(struct.unpack(f"<{count}{form[1]}", self.exactly(count * struct.calcsize(form))))

    def count(self, what: str) -> int:
        number = int(self.scalar("<Q"))
        if number > MAX_ITEMS:
            raise WeightsError(f"{self.file}: claims {number} {what}; damaged")
        return number

    def text(self) -> str:
        raw = self.exactly(int(self.scalar("<Q")))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise WeightsError(f"{self.file}: a name or text is not UTF-8 ({error.reason}); damaged") from error

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.exactly(struct.calcsize(form)))[0]

    def exactly(self, count: int) -> bytes:
        """Never asks for more than the file has: a damaged length must not become an allocation."""
        if count > self.num_bytes:
            raise WeightsError(f"{self.file}: a length of {count} bytes in a file of {self.num_bytes}; damaged")
        raw = self.f.read(count)
        if len(raw) < count:
            raise WeightsError(f"{self.file}: truncated in its header; download it again")
        return raw
