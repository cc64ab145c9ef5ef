"""Stall-free batching with a token budget chosen from a latency target (https://arxiv.org/abs/2403.02310, section 4).

The scheduler always puts decodes before chunks; this policy says how many tokens a step may have so that the time
between two tokens of a stream stays under ``tbt``. The paper profiles step times once for a machine; here a line
``seconds = base + slope x tokens`` follows the steps themselves, older ones fading, so that it keeps up with longer
contexts and other load. What a step costs for its context length is not in the line.

Beyond the paper: where few prompts wait, steps stay shorter than the target. Pending prompts are to be computed
``ttft`` seconds after the last one came, and a step takes no more of them than that needs. Otherwise a prompt that
comes alone stretches the steps of all streams to the target, and nobody was in such a hurry.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from .base import Key, SchedulingPolicy

FADE = 0.98
MIN_STEPS = 4


@dataclass
class SarathiServe(SchedulingPolicy):
    """``tbt``: seconds that may pass between two tokens of a stream. ``ttft``: seconds over which pending prompts may
    be spread (0: as fast as ``tbt`` lets them, as in the paper). ``first``: tokens per step until steps were seen.
    ``min_chunk``: prompt tokens that every step has room for, so that prompts go on where the target cannot be held.
    """

    tbt: float = 0.1
    ttft: float = 0.2
    first: int = 256
    min_chunk: int = 16

    def __post_init__(self) -> None:
        if not self.tbt > 0 or not self.ttft >= 0 or self.first < 1 or self.min_chunk < 1:
            raise ConfigError(
                f"sarathi_serve(tbt={self.tbt}, ttft={self.ttft}, first={self.first}, min_chunk={self.min_chunk}): "
                "ttft must be 0 or above, the others above 0"
            )
        self._num_steps = 0
        self._sums = [0.0] * 5  # weight, n, seconds, n², n x seconds
        self._to_compute: dict[int, int] = {}  # tokens of prompts (and of what was preempted), by sequence
        self._pending, self._chunk = 0, 0.0

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests wait before it; steps are kept under {self.tbt:g} s"

    def arrived(self, item: Item) -> None:
        self._expect(item, item.num_tokens - item.num_computed)

    def preempted(self, item: Item) -> None:
        self._expect(item, item.num_tokens)

    def admitted(self, item: Item, num_cached: int) -> None:
        self._expect(item, item.num_tokens - num_cached)

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        n = 0
        for s in scheduled:
            n += s.num_tokens
            if s.item.seq_id in self._to_compute:
                self._expect(s.item, self._to_compute[s.item.seq_id] - s.num_tokens)
        seen = (1.0, n, seconds, n * n, n * seconds)
        self._sums = [FADE * old + new for old, new in zip(self._sums, seen, strict=True)]
        self._num_steps += 1

    def left(self, item: Item, completed: bool) -> None:
        self._expect(item, 0)

    def token_budget(self, num_decodes: int, limit: int) -> int:
        return max(self._affordable(num_decodes, limit), num_decodes + self.min_chunk)

    def _expect(self, item: Item, num_tokens: int) -> None:
        """So many of the item's tokens are still to be computed before it decodes."""
        self._pending += num_tokens - self._to_compute.pop(item.seq_id, 0)
        if num_tokens > 0:
            self._to_compute[item.seq_id] = num_tokens
        if not self._pending:
            self._chunk = 0.0

    def _affordable(self, num_decodes: int, limit: int) -> int:
        weight, n, seconds, squares, products = self._sums
        if self._num_steps < MIN_STEPS:
            return self.first
        spread = weight * squares - n * n
        slope = (weight * products - n * seconds) / spread if spread > 1e-6 * squares else 0.0
        if slope <= 0:  # steps of one size only, or noise: scale the mean step, the base taken for nothing
            return int(self.tbt * n / seconds) if seconds > 0 else limit
        base = (seconds - slope * n) / weight
        return min(
            limit, int((self.tbt - base) / slope), num_decodes + self._unhurried(base + slope * num_decodes, slope)
        )

    def _unhurried(self, decodes: float, slope: float) -> int:
        """Prompt tokens a step that get all pending ones done in ``ttft`` seconds, where decodes alone take so long.

        With b of them in each of pending / b steps: pending / b x decodes + slope x pending <= ttft. It never falls
        while something is pending, or the last tokens would take for ever.
        """
        spare = self.ttft - slope * self._pending
        self._chunk = max(self._chunk, self._pending * max(decodes, 0.0) / spare if spare > 0 else inf)
        return sys.maxsize if self._chunk == inf else ceil(self._chunk)


POLICY = SarathiServe
