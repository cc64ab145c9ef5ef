"""Latency-sensitive requests against best effort ones: headroom, preemption, and a bound on the wait.

``priority`` 0 and below is latency-sensitive, above is best effort. From QLLM (https://arxiv.org/abs/2503.09304) comes
preemption of best effort work by latency-sensitive one; from Llumnix (https://arxiv.org/abs/2406.03243, section 4)
the headroom in memory that best effort work leaves free. Deviations: work is preempted between two steps (QLLM does it
between the layers of a mixture of experts), and best effort work that has waited ``patience`` seconds is not held back
or preempted any more, which neither paper promises.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from .base import Key, Room, SchedulingPolicy


@dataclass
class Classes(SchedulingPolicy):
    """``headroom``: share of the KV capacity that best effort work leaves free. ``patience``: seconds."""

    uses_priority = True

    headroom: float = 0.1
    patience: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.headroom < 1 or not self.patience >= 0:
            raise ConfigError(
                f"classes(headroom={self.headroom}, patience={self.patience}): headroom is a share below 1, patience "
                "seconds from 0"
            )

    def key(self, item: Item) -> Key:
        return (item.arrival + (self.patience if item.priority > 0 else 0.0), item.priority, item.seq_id)

    def may_preempt(self, waiting: Item, running: Item) -> bool:
        return waiting.priority <= 0 < running.priority and self.key(waiting) < self.key(running)

    def hold(self, item: Item, room: Room) -> str:
        if item.priority <= 0 or room.now >= item.arrival + self.patience:
            return ""
        wanted = sum(other.slots_now for other in room.running) + item.slots_now
        limit = int(room.capacity_tokens * (1 - self.headroom))
        return (
            "" if wanted <= limit else f"best effort work leaves {self.headroom:.0%} of the KV free for urgent requests"
        )

    def explain(self, item: Item, ahead: int) -> str:
        kind = "best effort" if item.priority > 0 else "latency-sensitive"
        return f"{ahead} requests wait before it; it is {kind} (class {item.priority})"


POLICY = Classes
