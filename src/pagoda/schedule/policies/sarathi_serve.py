"""Stall-free batching with a token budget chosen from a latency target (https://arxiv.org/abs/2403.02310, section 4).

The scheduler always puts decodes before chunks; this policy says how many tokens a step may have so that the time
between two tokens of a stream stays under ``tbt``. The paper profiles step times once for a machine; here a line
``seconds = base + slope x tokens`` follows the steps themselves, older ones fading, so that it keeps up with longer
contexts and other load. What a step costs for its context length is not in the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from .base import Key, SchedulingPolicy

FADE = 0.98
MIN_STEPS = 4


@dataclass
class SarathiServe(SchedulingPolicy):
    """``tbt``: seconds that may pass between two tokens of a stream. ``first``: tokens per step until steps were seen.
    ``min_chunk``: prompt tokens that every step has room for, so that prompts go on where the target cannot be held.
    """

    tbt: float = 0.1
    first: int = 256
    min_chunk: int = 16

    def __post_init__(self) -> None:
        if not self.tbt > 0 or self.first < 1 or self.min_chunk < 1:
            raise ConfigError(
                f"sarathi_serve(tbt={self.tbt}, first={self.first}, min_chunk={self.min_chunk}): all must be above 0"
            )
        self._num_steps = 0
        self._sums = [0.0] * 5  # weight, n, seconds, n², n x seconds

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests wait before it; steps are kept under {self.tbt:g} s"

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        n = sum(s.num_tokens for s in scheduled)
        seen = (1.0, n, seconds, n * n, n * seconds)
        self._sums = [FADE * old + new for old, new in zip(self._sums, seen, strict=True)]
        self._num_steps += 1

    def token_budget(self, num_decodes: int, limit: int) -> int:
        return max(self._affordable(limit), num_decodes + self.min_chunk)

    def _affordable(self, limit: int) -> int:
        weight, n, seconds, squares, products = self._sums
        if self._num_steps < MIN_STEPS:
            return self.first
        spread = weight * squares - n * n
        slope = (weight * products - n * seconds) / spread if spread > 1e-6 * squares else 0.0
        if slope <= 0:  # steps of one size only, or noise: scale the mean step, the base taken for nothing
            return int(self.tbt * n / seconds) if seconds > 0 else limit
        base = (seconds - slope * n) / weight
        return min(limit, int((self.tbt - base) / slope))


POLICY = SarathiServe
