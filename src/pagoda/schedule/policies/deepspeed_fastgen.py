"""Dynamic SplitFuse: every forward pass has the same number of tokens (https://arxiv.org/abs/2401.08671, section 3).

Long prompts are cut and short ones put together until a step is exactly ``tokens`` wide, so that passes are equally
long and stay where throughput saturates. Steps with less work than that are as wide as the work.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item
from .base import Key, SchedulingPolicy


@dataclass
class DeepspeedFastgen(SchedulingPolicy):
    """``tokens`` of every step, decodes among them."""

    tokens: int = 512

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"deepspeed_fastgen(tokens={self.tokens}): give at least 1")

    def key(self, item: Item) -> Key:
        return (item.arrival, item.seq_id)

    def token_budget(self, num_decodes: int, limit: int) -> int:
        return self.tokens

    def explain(self, item: Item, ahead: int) -> str:
        return f"{ahead} earlier requests wait before it; a step has {self.tokens} tokens"


POLICY = DeepspeedFastgen
