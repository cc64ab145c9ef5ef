"""Whole prompts before running decodes, in order of arrival: what engines did before chunked prefill.

Here to be compared with: Orca (OSDI 2022) and the first vLLM let every new prompt stall the streams that had begun
(Sarathi-Serve, https://arxiv.org/abs/2403.02310, section 3 measures the stalls).
"""

from __future__ import annotations

from ..item import Item
from .base import Key, SchedulingPolicy


class PrefillFirst(SchedulingPolicy):
    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def prefill_first(self) -> bool:
        return True

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier prompts wait before it"


POLICY = PrefillFirst
