"""Offline batches by shared prefix (BatchLLM, https://arxiv.org/abs/2412.03594, sections 4 and 5).

Requests that begin alike start one after another, while their common prefix is in the cache, and groups whose answers
are long beside their prompts go first, so that decodes are there to be mixed with the prompts of the later groups.
Requests are regrouped within ``window`` seconds of arrival, which bounds the wait. Deviations: a prefix is the first
``block`` tokens (the paper builds a tree over the whole input and cuts it by a dynamic program); answers are predicted
by a histogram; the batch is filled by bytes, as always here, which is the paper's memory-centric batching.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from ..prediction.histogram import Histogram
from ._prefixes import Prefixes
from .base import Key, SchedulingPolicy


@dataclass
class Batchllm(SchedulingPolicy):
    """``block`` in tokens; ``window`` in seconds."""

    block: int = 64
    window: float = 30.0

    def __post_init__(self) -> None:
        if self.block < 1 or not self.window > 0:
            raise ConfigError(
                f"batchllm(block={self.block}, window={self.window}): block is 1 or above, window above 0"
            )
        self._lengths, self._prefixes = Histogram(), Prefixes(self.block)

    def arrived(self, item: Item) -> None:
        group = self._prefixes.arrive(item)
        if group.size == 1:
            group.weight = self._lengths.quantile(item, 0.5) / max(1, len(item.prompt))

    def key(self, item: Item) -> Key:
        group = self._prefixes.group(item)
        return (item.arrival // self.window, -group.weight, group.number, item.arrival, item.seq_id)

    def left(self, item: Item, completed: bool) -> None:
        self._prefixes.leave(item)
        if completed:
            self._lengths.observe(item)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests of groups with longer answers, or earlier in its own group, go first"


POLICY = Batchllm
