"""The lower tier of KV as options ask for it: ``kv_offload``, ``kv_offload_dir``, ``kv_window``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigError
from ..core.types import KVFormat
from ..core.units import format_bytes, parse_bytes
from ..kv.codecs.base import with_dtype
from ..kv.offload.storage import LEAST_HEADS
from ..kv.offload.tier_file import TierFile
from ..kv.pages import MAX_PAGES
from ..models.shape import ModelShape
from .config import EngineConfig, longest_of

USUAL_HEADS = 8
"""Heads of the longest sequence that the window holds where nothing else is said."""


@dataclass(frozen=True, slots=True)
class OffloadSizes:
    """``num_blocks`` of KV in the tier, tokens of the ``longest`` sequence there, bytes of the window."""

    fmt: KVFormat
    num_blocks: int
    longest: int
    window_bytes: int
    folder: Path | None

    @property
    def host_bytes(self) -> int:
        """What the tier takes of this machine's memory."""
        return self.num_blocks * self.fmt.block_bytes if self.folder is None else 0

    def open(self) -> TierFile:
        """Raises ConfigError where the tier cannot be had."""
        return TierFile(self.fmt, self.num_blocks, self.folder)


def offload_sizes(config: EngineConfig, shape: ModelShape, dtype: str) -> OffloadSizes | None:
    """None where nobody asked for a tier. Raises ConfigError for sizes that cannot work, with those that can."""
    if config.kv_offload is None:
        return None
    fmt = with_dtype(shape.kv_format(config.page_size, dtype), config.kv_cache_dtype)
    asked = parse_bytes(config.kv_offload, what="kv_offload")
    num_blocks = min(asked // fmt.block_bytes, MAX_PAGES // fmt.pages_per_block)
    if not num_blocks:
        raise ConfigError(
            f"kv_offload is {config.kv_offload!r}, less than {fmt.page_size} tokens of this model's KV "
            f"({format_bytes(fmt.block_bytes)}); give more"
        )
    longest = min(longest_of(config, shape), num_blocks * fmt.page_size)
    head = fmt.blocks_for(longest) * fmt.page_bytes
    window = USUAL_HEADS * head if config.kv_window is None else parse_bytes(config.kv_window, what="kv_window")
    if window < LEAST_HEADS * head:
        raise ConfigError(
            f"kv_window is {config.kv_window!r}, but {LEAST_HEADS} heads of a sequence of {longest} tokens take "
            f"{format_bytes(LEAST_HEADS * head)}; give that or more, or lower max_model_len"
        )
    folder = None if config.kv_offload_dir is None else Path(config.kv_offload_dir)
    blocks = -(-window // fmt.block_bytes)
    return OffloadSizes(fmt, num_blocks, longest, blocks * fmt.block_bytes, folder)


def far_bytes(config: EngineConfig, shape: ModelShape, dtype: str) -> int:
    """What tier and window take of this machine's memory; nothing where nobody asked for them."""
    found = offload_sizes(config, shape, dtype)
    return 0 if found is None else found.window_bytes + found.host_bytes
