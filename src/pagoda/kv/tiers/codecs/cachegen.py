"""Deltas between neighbouring tokens, quantized more coarsely in deeper layers, entropy coded.

CacheGen (Liu et al., SIGCOMM 2024, arXiv:2310.07240, section 5.1): KV of neighbouring tokens is alike, so what is
stored is the difference to an anchor; early layers matter more, so they keep finer steps (by thirds of the layers);
symbols are entropy coded. Here a page of tokens is a group and its anchor the mean of the page, in eight bits. A row's
step is a share of its own root mean square, since a first token is many times larger than its neighbours. Symbols lie
channel by channel, and Huffman coding is zstandard's, whose tables are made anew for every 128 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ....core.errors import ConfigError
from .base import Floats, PageCodec, read_steps, scaled, step_bytes

ROUGHER = (1.0, 1.5, 2.0)
"""Steps of the first, second and last third of the layers, beside each other (the paper has 0.5, 1 and 1.5)."""


@dataclass(frozen=True)
class CacheGen(PageCodec):
    """See `base.PageCodec`. ``step`` of the first third, in root mean squares of a row's difference to the anchor."""

    step: float = 0.25

    num_parts = 4

    def __post_init__(self) -> None:
        if not 0.02 <= self.step <= 2:
            raise ConfigError(f"cachegen(step={self.step}): give a step from 0.02 to 2")

    def encode(self, x: Floats) -> list[bytes]:
        mean = x.mean(axis=2, keepdims=True)
        anchors, scale = scaled(mean, np.abs(mean).max(axis=-1, keepdims=True) / np.float32(127))
        delta = x - anchors * scale
        root = np.sqrt(np.square(delta).mean(axis=-1, keepdims=True))
        # Where a number would be cut off, its row's step is larger.
        least = np.abs(delta).max(axis=-1, keepdims=True) / np.float32(127)
        codes, step = scaled(delta, np.maximum(root * self._steps(len(x)), least))
        by_channel = np.ascontiguousarray(codes.swapaxes(2, 3))
        return [by_channel.tobytes(), step_bytes(step), anchors.tobytes(), step_bytes(scale)]

    def decode(self, parts: list[bytes], shape: tuple[int, int, int, int]) -> Floats:
        layers, heads, slots, dim = shape
        codes = np.frombuffer(parts[0], np.int8).reshape(layers, heads, dim, slots).swapaxes(2, 3)
        anchors = np.frombuffer(parts[2], np.int8).reshape(layers, heads, 1, dim)
        delta = codes * read_steps(parts[1], (layers, heads, slots, 1))
        return anchors * read_steps(parts[3], (layers, heads, 1, 1)) + delta

    def _steps(self, num_layers: int) -> Floats:
        thirds = np.arange(num_layers) * 3 // max(1, num_layers)
        return (self.step * np.array(ROUGHER, np.float32)[thirds]).astype(np.float32)[:, None, None, None]


CODEC = CacheGen
