"""How a block of KV pages becomes bytes in a tier: whole pages in, bytes out, and the way back.

A codec sees numbers ``[layers, heads, slots, dim]`` in float32, K and V apart; what it writes is compressed without
loss afterwards (`.._record`), so a codec makes numbers into small integers whose planes compress well. One that is not
exact changes what later tokens attend to: it is asked for by name, and its records are never found under another.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ....core.calls import build_call, format_call, parse_calls
from ....core.errors import ConfigError
from ....core.types import DTYPE_BYTES, KVFormat
from . import PAGE_CODECS

Floats = npt.NDArray[np.float32]
NUMBERS = ("float32", "bfloat16", "float16")
_SIZE = struct.Struct("<I")


class UnreadablePages(Exception):
    """The bytes are not what ``encode`` gave out."""


@dataclass(frozen=True)
class PageCodec(ABC):
    """A stateless codec; its fields are its parameters, ``num_parts`` what ``encode`` gives. Used from the
    tiers' threads.
    """

    num_parts: ClassVar[int]

    @abstractmethod
    def encode(self, x: Floats) -> list[bytes]:
        """``[layers, heads, slots, dim]`` -> parts, each of one kind of numbers."""

    @abstractmethod
    def decode(self, parts: list[bytes], shape: tuple[int, int, int, int]) -> Floats:
        """The way back, not exactly. Raises UnreadablePages (or ValueError) where parts have a wrong length."""

    def pack(self, raw: bytes, fmt: KVFormat) -> bytes:
        """The bytes of one block in ``fmt`` -> those on disk."""
        parts = [part for x in _planes(raw, fmt) for part in self.encode(x)]
        return b"".join(_SIZE.pack(len(part)) for part in parts) + b"".join(parts)

    def unpack(self, data: bytes, fmt: KVFormat) -> bytes:
        """A block's bytes in ``fmt``. Raises UnreadablePages."""
        shapes = _shapes(fmt)
        try:
            each, count = self.num_parts, self.num_parts * len(shapes)
            sizes = [_SIZE.unpack_from(data, at * _SIZE.size)[0] for at in range(count)]
            if _SIZE.size * count + sum(sizes) != len(data):
                raise UnreadablePages(f"{len(data)} bytes for parts of {sum(sizes)}")
            parts, at = [], _SIZE.size * count
            for size in sizes:
                parts.append(data[at : at + size])
                at += size
            found = [self.decode(parts[n * each : (n + 1) * each], shape) for n, shape in enumerate(shapes)]
        except (ValueError, struct.error) as error:
            raise UnreadablePages(str(error)) from error
        return _joined(found, fmt)


def parse_page_codec(text: str, fmt: KVFormat | None = None, *, option: str = "kv_dir_codec") -> PageCodec | None:
    """``exact`` (None), or a codec with its parameters: ``int8``, ``cachegen(step=0.5)``.

    Raises ConfigError listing what exists, or where pages of ``fmt`` hold no numbers.
    """
    if text.strip() == "exact":
        return None
    calls = parse_calls(text, option=option, example="cachegen(step=0.25)")
    if len(calls) != 1:
        raise ConfigError(f"{option} is {text!r}; give one codec: exact, {', '.join(PAGE_CODECS.names())}")
    codec = build_call(PAGE_CODECS.get(calls[0].name), calls[0])  # type: ignore[arg-type]
    assert isinstance(codec, PageCodec)
    if fmt is not None and fmt.dtype not in NUMBERS:
        raise ConfigError(
            f"{option}={text!r} makes numbers smaller, but pages in {fmt.dtype} are small already; say exact, or "
            f"leave kv_cache_dtype to {', '.join(NUMBERS)}"
        )
    return codec


def format_page_codec(codec: PageCodec | None) -> str:
    """The shortest text that means it."""
    return "exact" if codec is None else format_call(type(codec).__module__.rpartition(".")[2], codec)


def _shapes(fmt: KVFormat) -> list[tuple[int, int, int, int]]:
    dims = [fmt.k_dim, fmt.v_dim] if fmt.v_dim else [fmt.k_dim]
    return [(fmt.num_layers, fmt.num_kv_heads, fmt.page_size, dim) for dim in dims]


def _planes(raw: bytes, fmt: KVFormat) -> Iterable[Floats]:
    """K and V of a block as float32; a page is a plane of K rows, then one of V rows (`kernels.layout`)."""
    pages = _floats(raw, fmt.dtype).reshape(fmt.pages_per_block, -1)
    at = 0
    for shape in _shapes(fmt):
        width = shape[2] * shape[3]
        yield np.ascontiguousarray(pages[:, at : at + width]).reshape(shape)
        at += width


def _joined(planes: list[Floats], fmt: KVFormat) -> bytes:
    flat = np.concatenate([plane.reshape(fmt.pages_per_block, -1) for plane in planes], axis=1)
    return _bytes(flat, fmt.dtype)


def _floats(raw: bytes, dtype: str) -> Floats:
    if dtype == "bfloat16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, np.float16 if DTYPE_BYTES[dtype] == 2 else np.float32).astype(np.float32)


def _bytes(x: Floats, dtype: str) -> bytes:
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(x).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()  # to the nearest, ties to even
    return x.astype(np.float16 if DTYPE_BYTES[dtype] == 2 else np.float32).tobytes()


def scaled(x: Floats, step: Floats) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Multiples of ``step`` (rounded up to bfloat16, so that none is cut off) as int8, and that step."""
    bits = np.ascontiguousarray(step).view(np.uint32)
    step = ((bits + 0xFFFF) >> 16 << 16).view(np.float32)
    safe = np.where(step > 0, step, np.float32(1))
    return np.clip(np.rint(x / safe), -127, 127).astype(np.int8), step


def step_bytes(step: Floats) -> bytes:
    """Steps of ``scaled`` as bfloat16, high bytes first: exponents beside exponents."""
    halves = (np.ascontiguousarray(step).view(np.uint32) >> 16).astype(np.uint16).ravel()
    return (halves >> 8).astype(np.uint8).tobytes() + (halves & 255).astype(np.uint8).tobytes()


def read_steps(data: bytes, shape: tuple[int, ...]) -> Floats:
    """``step_bytes`` back. Raises ValueError where the length is wrong."""
    high, low = np.frombuffer(data, np.uint8).reshape(2, -1).astype(np.uint32)
    return ((high << 24) | (low << 16)).view(np.float32).reshape(shape)
