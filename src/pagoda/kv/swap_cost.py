"""Whether KV that left the pool is there sooner when it is read, or when it is computed again: both rates are measured.

    reading    sum over tiers of  blocks there * bytes of a block / bytes per second of that tier
    computing  blocks * tokens of a page / tokens per second of prompts in this engine

Tiers have rates of their own, since memory and a disk are far apart. A rate that is not known yet decides nothing: what
is there is read, which measures it.
"""

from __future__ import annotations

from collections.abc import Mapping

NEW_SHARE = 0.3
"""Of the newest measurement in a rate."""
RETRY = 16
"""One of so many refusals is read all the same: a rate that was measured in a bad moment would stay for ever."""


class SwapCost:
    """``note`` is called by the thread that reads, the rest by the engine's."""

    def __init__(self, block_bytes: int, page_size: int) -> None:
        self._block_bytes, self._page_size = block_bytes, page_size
        self.bytes_per_second: dict[str, float] = {}
        """By tier, of KV as it is in the pool."""
        self._num_refused = 0

    def note(self, where: str, num_blocks: int, seconds: float) -> None:
        """So many blocks came from that tier in that time."""
        if num_blocks:
            rate = num_blocks * self._block_bytes / max(1e-6, seconds)
            before = self.bytes_per_second.get(where, rate)
            self.bytes_per_second[where] = (1 - NEW_SHARE) * before + NEW_SHARE * rate

    def computing_is_faster(self, num_blocks: Mapping[str, int], tokens_per_second: float) -> bool:
        """Of so many blocks by tier. ``tokens_per_second`` 0: not known yet."""
        rates = self.bytes_per_second
        if not tokens_per_second or any(where not in rates for where in num_blocks):
            return False
        reading = sum(count * self._block_bytes / rates[where] for where, count in num_blocks.items())
        if reading <= sum(num_blocks.values()) * self._page_size / tokens_per_second:
            return False
        self._num_refused += 1
        return self._num_refused % RETRY != 0
