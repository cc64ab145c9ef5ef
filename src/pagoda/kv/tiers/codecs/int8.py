"""Eight-bit integers, a scale for every row (a slot of one head): half of bfloat16's bytes, less what zstd finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Floats, PageCodec, read_steps, scaled, step_bytes


@dataclass(frozen=True)
class Int8(PageCodec):
    """See `base.PageCodec`. Error of a number: at most 0.4 % of its row's largest."""

    num_parts = 2

    def encode(self, x: Floats) -> list[bytes]:
        codes, step = scaled(x, np.abs(x).max(axis=-1, keepdims=True) / np.float32(127))
        return [codes.tobytes(), step_bytes(step)]

    def decode(self, parts: list[bytes], shape: tuple[int, int, int, int]) -> Floats:
        codes = np.frombuffer(parts[0], np.int8).reshape(shape)
        return codes * read_steps(parts[1], (*shape[:3], 1))


CODEC = Int8
