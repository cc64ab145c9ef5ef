"""Methods that keep some heads whole and let the others see the beginning and the newest tokens only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least, share
from .base import By, Choice, Eviction, Held, Need, Ranking

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs
    from .base import Heads


EVERYTHING = 1 << 40
"""More slots than a head ever holds."""


@dataclass(frozen=True)
class SplitHeads(Eviction):
    """``retrieval`` is the share of kv-heads (those with the highest calibrated gates) that keep everything; the others
    never hold more than ``sinks`` first and ``local`` newest tokens. An act leaves room for ``every`` more.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    extra: ClassVar[int] = 0  # slots of a streaming head behind the sinks that stay as well
    retrieval: float = 0.25
    local: int = 128
    sinks: int = 4
    every: int = 32

    def __post_init__(self) -> None:
        share("retrieval", self.retrieval)
        for name, least in (("local", 4), ("sinks", 0), ("every", 1)):
            at_least(name, getattr(self, name), least)

    def learned_sizes(self, heads: Heads) -> dict[str, tuple[int, ...]]:
        return {"heads": (heads.num_kv_heads,)}

    def next_act(self, num_seen: int, prompt_len: int) -> int | None:
        first = max(prompt_len, self.sinks + self.local)
        if num_seen < first:
            return first
        return first + ((num_seen - first) // self._interval + 1) * self._interval

    def most_slots(self, num_seen: int, prompt_len: int) -> float:
        most = self.sinks + self.local
        if num_seen < max(prompt_len, most):
            return num_seen
        return self.retrieval * num_seen + (1.0 - self.retrieval) * most

    @property
    def _interval(self) -> int:
        return min(self.every, self.local // 2)

    def streaming(self, inputs: Inputs) -> Tensor:
        """bool [L, H]: the heads with the lowest gates."""
        if "streaming" not in inputs.memory:
            inputs.memory["streaming"] = self._streaming(inputs)
        return inputs.memory["streaming"]  # type: ignore[return-value]

    def _streaming(self, inputs: Inputs) -> Tensor:
        gates = inputs.calibration["heads"].to(inputs.lens.device)
        num_whole = int(self.retrieval * gates.numel())
        order = gates.flatten().argsort(dim=-1, descending=True, stable=True)
        streams = gates.new_ones(gates.numel()).bool()
        streams[order[:num_whole]] = False
        return streams.view(gates.shape)

    @property
    def near(self) -> int:
        """Newest slots of a streaming head that an act leaves."""
        return max(1, self.local - self._interval - self.extra)

    def ranks(self, held: Held) -> Ranking | None:
        if "budgets" not in held.memory:  # the first act looks at the calibration
            return None
        budgets: Tensor = held.memory["budgets"]  # type: ignore[assignment]
        return Ranking(By.AGE, budgets, self.sinks + self.extra, self.near)

    def act(self, inputs: Inputs) -> Choice | None:
        if "budgets" not in inputs.memory:
            whole = inputs.lens.new_full(inputs.lens.shape, EVERYTHING)
            inputs.memory["budgets"] = whole.masked_fill(self.streaming(inputs), self.sinks + self.extra + self.near)
        budgets: Tensor = inputs.memory["budgets"]  # type: ignore[assignment]
        return Choice(inputs.lens, inputs.num_slots, budgets, sinks=self.sinks + self.extra, recent=self.near)
