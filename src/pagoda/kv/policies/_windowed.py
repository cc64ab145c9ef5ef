"""Codecs that encode whole pages and leave the newest tokens as they are: what they share, and what the engine asks.

    tokens  │ encoded pages ................ │ raw: at least ``window``, at most ``window + every + a page`` │
                                             ^ a multiple of the page size

Every ``every`` tokens the pages that lie whole before the window are encoded, at token counts that depend on nothing
else, so chunks, batches and preemption change nothing. A chunk ends there, but where codes depend on nothing but a
page's numbers and a calibration (``plain``): then a layer encodes them when it has the chunk's keys and values, and
later queries of the same chunk read codes. The raw tokens are the sequence's own (its policy state, leased with it);
their pages are reserved already, and empty. Behind an eviction that compresses the prompt once, the prompt is raw until
the eviction has chosen; what stays is encoded then.

With ``window=0`` nothing but the tokens since the last act is raw, so whole pages are all that the next token needs:
such a format has a prefix cache. Others share nothing, since a page in the cache would lack the raw tokens after it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from .base import KVPolicy, Need, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from ...core.types import KVFormat
    from ...kernels.page_code import PageCode, Side

LEAST_RAW, MOST_RAW, RAW_SHARE = 64, 512, 4
"""Tokens of a chunk that is encoded within its step: all its layers have them raw until the step is over."""


def raw_tokens(prompt_len: int) -> int:
    """Of a chunk of this prompt: a quarter, so that it hardly ever peaks at more than half of what exact takes. (All of
    ``MOST_RAW`` had a prompt of 672 tokens peak at three quarters; of 2048 and more it is what it was.)
    """
    return min(MOST_RAW, max(LEAST_RAW, prompt_len // RAW_SHARE))


Learned = Mapping[str, "Tensor"]
"""What ``pagoda calibrate`` stored: ``[L, H, …]`` where all layers are encoded, ``[H, …]`` where one is decoded."""


@dataclass(frozen=True)
class Seen:
    """What an encoding may look at beside the numbers themselves.

    learned  see ``Learned``
    raw      float32 ``[L, H, m, k_dim]``: the keys of all raw tokens; the first of them are those to be encoded
    queries  float32 ``[L, w, Hq, k_dim]`` of the newest tokens, oldest first (with ``Need.QUERIES``); the last one is
             that of the last raw key
    scale    multiplies q·k
    """

    learned: Learned = field(default_factory=dict)
    raw: Tensor | None = None
    queries: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class WindowedCodec(KVPolicy):
    """``window`` newest tokens stay raw; pages before them are encoded every ``every`` tokens."""

    stage: ClassVar[Stage] = Stage.CODEC
    needs: ClassVar[frozenset[Need]] = frozenset()
    probes: ClassVar[int] = 0
    """With ``Need.QUERIES``: how many of the newest queries an encoding is shown, at most."""
    alone: ClassVar[str] = ""
    """Why no eviction can come before it ("" where one can)."""
    plain: ClassVar[bool] = False
    """Whether a page's codes depend on nothing but its numbers and ``learned``: an encoding looks at nothing else of
    ``Seen``."""
    window: int = 32
    every: int = 32

    def __post_init__(self) -> None:
        at_least("window", self.window, 0)
        at_least("every", self.every, 1)

    @property
    def method(self) -> str:
        """The registered name, which is also that of its calibration."""
        return type(self).__module__.rpartition(".")[2]

    @property
    @abstractmethod
    def name(self) -> str:
        """Names the format of the pages; equal only if they read alike."""

    @property
    def codec(self) -> str:
        """The store's name. What a page holds depends on how much its tokens saw raw, which sharing must respect."""
        return f"{self.name}-every{self.every}" if self.window == 0 else self.name

    @property
    def calibrated(self) -> frozenset[str]:
        """As ``PolicyStack.calibrated``."""
        return frozenset({self.method} if Need.CALIBRATION in self.needs else ())

    def settled(self, page_size: int) -> int:
        """Tokens from one point to the next at which all pages are encoded and may be shared; 0: there is none."""
        whole = self.window == 0 and self.every % page_size == 0
        return self.every if whole and self.every >= self.probes else 0

    def share(self, q: Tensor, k: Tensor, learned: Learned) -> tuple[Tensor, Tensor]:
        """Queries ``[T, Hq, k_dim]`` and new keys ``[T, H, k_dim]`` of a layer as they attend; by default as given."""
        return q, k

    @property
    def shares(self) -> bool:
        """Whether ``share`` gives others than it is given."""
        return type(self).share is not WindowedCodec.share

    def why_not(self, fmt: KVFormat) -> str | None:
        """Why a model with this KV cannot be stored so, or None."""
        return None

    @abstractmethod
    def page_bytes(self, page_size: int, k_dim: int, v_dim: int) -> int:
        """Bytes of one page of one head."""

    @abstractmethod
    def encode(self, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
        """Whole pages: k float32 ``[L, H, n, page_size, k_dim]``, v alike -> uint8 ``[L, H, n, page_bytes]``."""

    @abstractmethod
    def decode(self, pages: Tensor, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Tensor, Tensor]:
        """The way back for one layer: ``[H, n, page_bytes]`` -> float32 ``[H, n, page_size, k_dim]`` and v alike."""

    def sides(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> tuple[Side, Side] | None:
        """The same as ``decode`` in the kernels' words, or None where they have none for it."""
        return None

    def code(self, page_size: int, k_dim: int, v_dim: int, learned: Learned) -> PageCode:
        """How pages of one layer are decoded, and encoded where they are ``plain``; ``learned``: ``[H, …]``."""
        from ...kernels.page_code import PageCode

        dims, of_one = (page_size, k_dim, v_dim), {name: x[None] for name, x in learned.items()}
        return PageCode(
            *dims,
            self.page_bytes(*dims),
            lambda pages: self.decode(pages, *dims, learned),
            self.sides(*dims, learned),
            (lambda k, v: self.encode(k[None], v[None], Seen(of_one))[0]) if self.plain else None,
        )

    @classmethod
    def learn(cls, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """``Learned`` from samples k float32 ``[L, H, N, k_dim]``, v (with ``Need.CALIBRATION``)."""
        raise NotImplementedError

    def next_act(self, num_seen: int) -> int:
        """The next number of tokens at which pages are encoded."""
        return (num_seen // self.every + 1) * self.every

    def parts(self, first: int, num: int, start: int, page_size: int) -> list[tuple[int, int]]:
        """Tokens ``first`` … ``first + num - 1``, cut where pages are encoded: how many tokens, and how many slots are
        encoded behind them, which the next part reads as codes. ``start``: the first raw slot.
        """
        found, end = [], first + num
        while first < end:
            act = min(self.next_act(first), end)
            encoded = 0 if act % self.every else max(0, self.num_encoded(act, page_size) - start)
            found.append((act - first, encoded))
            first, start = act, start + encoded
        return found

    def num_encoded(self, num_slots: int, page_size: int) -> int:
        """Slots in encoded pages after an act at which ``num_slots`` are held."""
        return max(0, num_slots - self.window) // page_size * page_size


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes below ``2 ** bits``, ``[..., n]`` with n a multiple of ``8 // bits`` -> ``[..., n * bits // 8]``."""
    per_byte = 8 // bits
    parts = codes.view(*codes.shape[:-1], codes.shape[-1] // per_byte, per_byte)
    packed = parts[..., 0].clone()
    for index in range(1, per_byte):
        packed |= parts[..., index] << (bits * index)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The way back: uint8 ``[..., n * 8 // bits]``."""
    import torch

    shifts = range(0, 8, bits)
    return torch.stack([(packed >> shift) & (2**bits - 1) for shift in shifts], -1).flatten(-2)


def bytes_of(x: Tensor) -> Tensor:
    """Numbers ``[..., n, m]`` as bfloat16: uint8 ``[..., n * m * 2]``."""
    import torch

    return x.to(torch.bfloat16).contiguous().view(torch.uint8).flatten(-2)


def numbers_of(x: Tensor, rows: int) -> Tensor:
    """The way back: float32 ``[..., rows, m]``."""
    import torch

    # A copy, since the bytes may begin anywhere.
    return x.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float().unflatten(-1, (rows, -1))


def rounded(x: Tensor) -> Tensor:
    """float32 as bfloat16 will hold it: codes are computed with the grid that will be read."""
    import torch

    return x.to(torch.bfloat16).float()


def take(pages: Tensor, *sizes: int) -> list[Tensor]:
    """The parts of the pages' bytes ``[..., page_bytes]``, in their order."""
    return list(pages.split(sizes, dim=-1))
