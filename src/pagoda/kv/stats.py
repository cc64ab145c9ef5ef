"""The counters of one KV manager."""

from __future__ import annotations

from dataclasses import dataclass, field

from .prefix import PrefixStats


@dataclass(frozen=True, slots=True)
class KVStats:
    """One look at pool, sequences and prefix cache. Pages, blocks and bytes of one KV format."""

    num_blocks: int
    max_blocks: int
    num_free_blocks: int
    num_touched_blocks: int
    num_pages: int
    num_free_pages: int
    num_used_pages: int
    num_cached_entries: int
    num_idle_entries: int
    num_sequences: int
    num_copied_pages: int
    num_dropped_slots: int
    num_refined_tables: int
    page_bytes: int
    block_bytes: int
    prefix: PrefixStats = field(default_factory=PrefixStats)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that the pool may use now."""
        return self.num_blocks * self.block_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes of pages with an owner."""
        return self.num_used_pages * self.page_bytes

    @property
    def touched_bytes(self) -> int:
        """Bytes of blocks that may be resident."""
        return self.num_touched_blocks * self.block_bytes
