"""Shortest remaining work first, by a probe of the model's own hidden states (TRAIL, https://arxiv.org/abs/2410.01035).

Until its prompt is computed, a request ranks by what such prompts got of late (``prediction/histogram.py``); then the
probe (``prediction/probe.py``, trained by ``pagoda calibrate trail MODEL``) says how long the answer will be, and it
ranks by what remains. As in the paper preemption is limited: only requests that have less than ``limit`` of their
predicted answer give way, since what is nearly done costs most to throw out. A job of w seconds of work ranks as if it
had come ``weight`` x w seconds later, so nobody starves. Deviations: the probe is linear, on the final layer, and asked
once, not at every token; prompt tokens that the prefix cache had are not in its mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from ..prediction.costs import StepCosts
from ..prediction.histogram import Histogram
from ..prediction.probe import Probe
from .base import Key, SchedulingPolicy


@dataclass
class Trail(SchedulingPolicy):
    """``weight`` of a second of work, in seconds of arrival; ``limit``: share of an answer after which it stays."""

    needs_training: ClassVar[bool] = True
    wants_hidden: ClassVar[bool] = True

    weight: float = 100.0
    limit: float = 0.5

    def __post_init__(self) -> None:
        if not self.weight >= 0 or not 0 <= self.limit <= 1:
            raise ConfigError(
                f"trail(weight={self.weight}, limit={self.limit}): the weight is 0 or above, the limit a share"
            )
        self._probe: Probe | None = None
        self._lengths, self._costs = Histogram(), StepCosts()
        self._length: dict[int, float] = {}
        self._work: dict[int, float] = {}
        self._hidden: dict[int, Sequence[float]] = {}

    def load(self, trained: Mapping[str, Any]) -> None:
        self._probe = Probe.of(trained)

    def key(self, item: Item) -> Key:
        return (item.arrival + self.weight * self._work[item.seq_id], item.seq_id)

    def may_preempt(self, waiting: Item, running: Item) -> bool:
        return running.num_output < self.limit * self._length[running.seq_id] and self.key(waiting) < self.key(running)

    def arrived(self, item: Item) -> None:
        self._expect(item, self._lengths.quantile(item, 0.5))

    def probed(self, item: Item, hidden: Sequence[float]) -> None:
        if self._probe is not None:
            self._hidden[item.seq_id] = hidden
            self._expect(item, self._probe.length(hidden))

    def preempted(self, item: Item) -> None:
        self._expect(item, self._length[item.seq_id])

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        self._costs.note(scheduled, seconds)

    def left(self, item: Item, completed: bool) -> None:
        hidden = self._hidden.pop(item.seq_id, None)
        del self._length[item.seq_id], self._work[item.seq_id]
        if completed:
            self._lengths.observe(item)
            if self._probe is not None and hidden is not None:
                self._probe.observe(hidden, item.num_output)

    def explain(self, item: Item, ahead: int) -> str:
        expected = self._length[item.seq_id]
        return (
            f"{ahead} requests with less work left, or that came earlier, go first; {expected:.0f} tokens are expected"
        )

    def _expect(self, item: Item, length: float) -> None:
        self._length[item.seq_id] = max(length, item.num_output + 1.0)
        remaining = self._length[item.seq_id] - item.num_output
        self._work[item.seq_id] = self._costs.work(item.num_tokens - item.num_computed, int(remaining))


POLICY = Trail
