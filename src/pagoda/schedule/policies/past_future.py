"""Admission from the distribution of past output lengths (Past-Future, https://arxiv.org/abs/2507.10150, section 3).

A request starts only if the memory that all running ones are expected to need *at every moment to come* leaves room
for it: sequences end one after another, each end gives tokens back, and the peak of that curve must stay under the
capacity. What is expected of a sequence is drawn from the lengths of answers that ended, given that it is already as
long as it is. That is the only room that is kept: no block is asked for beside those of the newcomer. Where a KV policy
drops slots, what it leaves is counted, and a prompt as whole while it is under way. Deviations:
the draw is a hash of the sequence, the same at each step, so that a schedule can be repeated; a refusal stands for
eight steps where nobody ends; pages shared through the prefix cache count for each sequence, which errs on the safe
side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from ..prediction.histogram import Histogram
from .base import Key, Room, SchedulingPolicy

BELIEVED_STEPS = 7
"""The peak of those who run stays where it is until one of them ends: it is computed again then, or after these."""


@dataclass
class PastFuture(SchedulingPolicy):
    """``reserve``: share of the capacity that is kept free for draws that were too short."""

    reserve: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.reserve < 1:
            raise ConfigError(f"past_future(reserve={self.reserve}): give a share from 0 to below 1")
        self._lengths = Histogram()
        self._refused: tuple[int, str, int] = (-1, "", 0)  # the head, why, and for how many steps that is believed

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def hold(self, item: Item, room: Room) -> str:
        seq_id, reason, num_steps = self._refused
        if item.seq_id == seq_id and num_steps:
            self._refused = seq_id, reason, num_steps - 1
            return reason
        peak = self._peak((*room.running, item))
        limit = int(room.capacity_tokens * (1 - self.reserve))
        if peak <= limit:
            return ""
        reason = f"beside those that run it is expected to need {peak} tokens of KV at the peak, and {limit} are there"
        self._refused = item.seq_id, reason, BELIEVED_STEPS
        return reason

    def preempted(self, item: Item) -> None:
        self._refused = (-1, "", 0)

    def num_growing(self, num_running: int) -> int:
        return 0  # how they grow is in the peak

    def left(self, item: Item, completed: bool) -> None:
        self._refused = (-1, "", 0)
        if completed:
            self._lengths.observe(item)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests wait before it, for memory that running ones are expected to need"

    def _peak(self, items: Iterable[Item]) -> int:
        """Now, with the prompts that are under way, and later, when they are what their KV policies leave."""
        whole, held = 0, []
        for item in items:
            now, remaining = item.num_tokens, self._remaining(item)
            whole += item.slots_now
            held.append((item.slots(now), remaining, item.slots(now + remaining)))
        return max(whole, peak_slots(held))

    def _remaining(self, item: Item) -> int:
        drawn = (item.seq_id * 2654435761 % 2**32) / 2**32  # Knuth's multiplicative hash: uniform and repeatable
        return self._lengths.quantile(item, drawn) - item.num_output


def peak_slots(held: Iterable[tuple[int, int, int]]) -> int:
    """Most slots that sequences (slots now, tokens to come, slots at the end) hold together until the last one ends.

    All grow by one a step, as far as their end; the peaks are at the ends. With the longest-lived first, at the end of
    the i-th those before it still run and have each grown by its remainder (equation 3 of the paper).
    """
    ordered = sorted(held, key=lambda one: -one[1])
    peak = total = 0
    if all(now + remaining == end for now, remaining, end in ordered):
        for count, (now, remaining, _) in enumerate(ordered, start=1):
            total += now
            peak = max(peak, total + count * remaining)
        return peak
    for count, (_, remaining, _) in enumerate(ordered, start=1):
        peak = max(peak, sum(min(now + remaining, end) for now, _, end in ordered[:count]))
    return peak


POLICY = PastFuture
