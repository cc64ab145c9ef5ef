"""Codecs that encode whole pages and leave the newest tokens as they are: what they share, and what the engine asks.

    tokens  │ encoded pages ................ │ raw: at least ``window``, at most ``window + every + a page`` │
                                             ^ a multiple of the page size

Every ``every`` tokens the pages that lie whole before the window are encoded, at token counts that depend on nothing
else, so chunks, batches and preemption change nothing. The raw tokens are the sequence's own (its policy state, leased
with it); their pages are reserved already, and empty.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from .base import KVPolicy, Stage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WindowedCodec(KVPolicy):
    """``window`` newest tokens stay raw; pages before them are encoded every ``every`` tokens."""

    stage: ClassVar[Stage] = Stage.CODEC
    window: int = 32
    every: int = 32

    def __post_init__(self) -> None:
        at_least("window", self.window, 0)
        at_least("every", self.every, 1)

    @property
    @abstractmethod
    def codec(self) -> str:
        """Names the format of the pages; equal only if they read alike."""

    @abstractmethod
    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        """Bytes of one page of one head."""

    @abstractmethod
    def encode(self, k: Tensor, v: Tensor) -> Tensor:
        """Whole pages: k float32 ``[..., page_size, k_dim]``, v alike -> uint8 ``[..., page_bytes]``."""

    @abstractmethod
    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int) -> tuple[Tensor, Tensor]:
        """The way back, float32."""

    def next_act(self, num_seen: int) -> int:
        """The next number of tokens at which pages are encoded."""
        return (num_seen // self.every + 1) * self.every

    def num_encoded(self, num_seen: int, page_size: int) -> int:
        """Tokens in encoded pages once ``num_seen`` tokens are seen and the acts up to there are done."""
        acted = num_seen // self.every * self.every
        return max(0, acted - self.window) // page_size * page_size


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below ``2 ** bits``, ``[..., n]`` with n a multiple of ``8 // bits`` -> ``[..., n * bits // 8]``."""
    per_byte = 8 // bits
    parts = codes.view(*codes.shape[:-1], -1, per_byte)
    packed = parts[..., 0].clone()
    for index in range(1, per_byte):
        packed |= parts[..., index] << (bits * index)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The way back: uint8 ``[..., n * 8 // bits]``."""
    import torch

    shifts = range(0, 8, bits)
    return torch.stack([(packed >> shift) & (2**bits - 1) for shift in shifts], -1).flatten(-2)
