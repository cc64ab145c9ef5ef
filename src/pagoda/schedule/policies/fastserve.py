"""Skip-join multi-level feedback queue (FastServe, https://arxiv.org/abs/2305.05920, section 4).

Levels have quanta of output tokens that double. A request joins the level whose quantum covers what its prompt costs
(skipping those above), sinks a level whenever it has used its quantum up, and takes the place of running requests of
lower levels. Deviations: promotion is not a jump after a time-out but a constant lead (a level is worth ``promote``
seconds of arrival, so newcomers cannot overtake for ever); what is preempted is computed again, or found in the prefix
cache if its pages were not needed, where the paper swaps KV to the host ahead of time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from .base import Key, SchedulingPolicy


@dataclass
class Fastserve(SchedulingPolicy):
    """``quantum``: output tokens of the first level. ``prompt_ratio``: prompt tokens that cost as much as one output
    token. ``levels``: how many. ``promote``: seconds of arrival that a level is worth.
    """

    quantum: int = 16
    prompt_ratio: int = 32
    levels: int = 8
    promote: float = 10.0

    def __post_init__(self) -> None:
        if min(self.quantum, self.prompt_ratio, self.levels) < 1 or self.promote < 0:
            raise ConfigError(f"fastserve(quantum={self.quantum}, …): counts are 1 or above, promote 0 or above")

    def key(self, item: Item) -> Key:
        return (item.arrival + self.promote * self.level(item), item.seq_id)

    def level(self, item: Item) -> int:
        """0 is the first; quanta up to level l sum to (2^(l+1) - 1) quantum."""
        used = len(item.prompt) // self.prompt_ratio + item.num_output
        return min(self.levels - 1, (used // self.quantum + 1).bit_length() - 1)

    def may_preempt(self, waiting: Item, running: Item) -> bool:
        return self.level(waiting) < self.level(running) and self.key(waiting) < self.key(running)

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} requests of level {self.level(item)} or above wait before it"


POLICY = Fastserve
