"""Whoever came first starts as soon as its known tokens fit, and nothing is kept for those that run to grow into.

Here to be compared with: how engines admit that look at the present only (vLLM, https://arxiv.org/abs/2309.06180; the
"aggressive" scheduler of Past-Future, https://arxiv.org/abs/2507.10150, section 2). When pages run out, the last to
come lose theirs. ``fcfs`` keeps a block free for each that runs, which spares most of these preemptions.
"""

from __future__ import annotations

from ..item import Item
from .base import Key, SchedulingPolicy


class Greedy(SchedulingPolicy):
    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def num_growing(self, num_running: int) -> int:
        return 0

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests wait before it"


POLICY = Greedy
