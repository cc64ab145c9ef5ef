"""Small value types that several rooms share. No torch, no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .errors import ConfigError, choices

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Granularity(StrEnum):
    """How many rows a page table has, hence how finely a sequence can give pages back.

    ``sequence`` one row for all layers and heads, ``layer`` a row per layer, ``head`` a row per kv-head per layer.
    """

    SEQUENCE = "sequence"
    LAYER = "layer"
    HEAD = "head"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class KVFormat:
    """The shape and bytes of one model's KV: everything that the page accounting needs to know.

    A *block* is the unit that the pool hands out whole: one page for every kv-head of every layer, consecutive ids,
    page of (layer, head) = block base + layer * num_kv_heads + head.

    ``v_dim == 0`` means a latent page (MLA): one vector of ``k_dim`` per slot, V is read out of it.
    ``dtype`` is one of DTYPE_BYTES, or a codec's name; ``slot_bytes`` are those of one slot of one head, scales
    included (0: those of its numbers; a codec's come from ``kv.codecs``).
    """

    num_layers: int
    num_kv_heads: int
    k_dim: int
    v_dim: int
    page_size: int
    dtype: str
    slot_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.slot_bytes:
            if self.dtype not in DTYPE_BYTES:
                raise ConfigError(choices("dtype of KV pages", self.dtype, DTYPE_BYTES))
            object.__setattr__(self, "slot_bytes", (self.k_dim + self.v_dim) * DTYPE_BYTES[self.dtype])

    @property
    def pages_per_block(self) -> int:
        return self.num_layers * self.num_kv_heads

    @property
    def page_bytes(self) -> int:
        return self.page_size * self.slot_bytes

    @property
    def block_bytes(self) -> int:
        return self.pages_per_block * self.page_bytes

    @property
    def bytes_per_token(self) -> int:
        return self.block_bytes // self.page_size

    def num_rows(self, granularity: Granularity) -> int:
        """Rows of a page table of this granularity."""
        return {
            Granularity.SEQUENCE: 1,
            Granularity.LAYER: self.num_layers,
            Granularity.HEAD: self.pages_per_block,
        }[granularity]

    def pages_per_run(self, granularity: Granularity) -> int:
        """Pages of one run of this granularity (the heads that one row covers)."""
        return self.pages_per_block // self.num_rows(granularity)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens of every head."""
        return -(-num_tokens // self.page_size)
