"""Offline batches by shared prefix (BatchLLM, https://arxiv.org/abs/2412.03594, sections 4 and 5).

The prompts of all that wait form a tree; requests start in the order of a walk through it, depth first, so that all
below a common beginning follow one another while it is in the cache, whatever its length (that this order has the most
hits is theorem 3.1 of SGLang, https://arxiv.org/abs/2312.07104). A request whose beginning is being computed just now
waits for that step, so that it is computed once and not as often as a batch has room. Groups (the subtrees of first
blocks) whose answers are long beside what their prompts cost go first, so that decodes are there to be mixed with the
prompts of the later groups. Requests are regrouped within ``window`` seconds of arrival, which bounds the wait.
Deviations: the paper cuts the tree to one level of sharing by a dynamic program, since its attention kernel shares one
prefix a group; here pages are shared at every depth, and nothing need be cut. Answers are predicted by a histogram.
The batch is filled by bytes, as always here, which is the paper's memory-centric batching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from ..prediction.histogram import Histogram
from ._prefixes import PromptTree
from .base import Key, Room, SchedulingPolicy


@dataclass
class Batchllm(SchedulingPolicy):
    """``block`` in tokens (an edge of the tree); ``window`` in seconds."""

    block: int = 32
    window: float = 30.0

    def __post_init__(self) -> None:
        if self.block < 1 or not self.window > 0:
            raise ConfigError(
                f"batchllm(block={self.block}, window={self.window}): block is 1 or above, window above 0"
            )
        self._lengths, self._tree = Histogram(), PromptTree(self.block)
        self._cached: Callable[[Item], int] = lambda item: 0
        self._grown: dict[int, Item] = {}  # one request of each group that has doubled since it was weighed

    def bind(self, cached_tokens: Callable[[Item], int]) -> None:
        self._cached = cached_tokens

    def arrived(self, item: Item) -> None:
        self._tree.add(item)
        group = self._tree.group(item)
        if group.num_items & (group.num_items - 1) == 0:  # 1, 2, 4, …: so weighing costs O(log n) a request in all
            self._grown[group.number] = item

    def moved(self) -> Iterable[Item]:
        grown, self._grown = self._grown, {}
        moved: list[Item] = []
        for item in grown.values():
            if self._tree.holds(item):
                group = self._tree.group(item)
                items, tokens = list(group.below()), self._tree.num_tokens(group)
                group.weight = sum(self._lengths.quantile(i, 0.5) for i in items) / max(1, tokens)
                moved += items
        return moved

    def key(self, item: Item) -> Key:
        group, path = self._tree.group(item), [node.number for node in self._tree.up(item)]
        return (item.arrival // self.window, -group.weight, *reversed(path), -1, item.arrival, item.seq_id)

    def hold(self, item: Item, room: Room) -> str:
        return self._tree.why_later(item, self._cached)

    def admitted(self, item: Item, num_cached: int) -> None:
        self._tree.lead(item)

    def preempted(self, item: Item) -> None:
        self._tree.retreat(item)

    def left(self, item: Item, completed: bool) -> None:
        self._tree.remove(item)
        if completed:
            self._lengths.observe(item)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests of groups with longer answers, or before it in the tree of prompts, go first"


POLICY = Batchllm
