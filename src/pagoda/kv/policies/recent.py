"""Keep the newest tokens of every head: the control that other eviction methods must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.types import Granularity
from ._scored import Rolling
from .base import Decision

if TYPE_CHECKING:
    from ._inputs import Inputs


@dataclass(frozen=True)
class Recent(Rolling):
    """Nothing but the last tokens, the same in every head."""

    granularity: ClassVar[Granularity] = Granularity.SEQUENCE

    def ends(self, num_slots: int, prompt_len: int) -> tuple[int, int]:
        return 0, num_slots - self.slots_after(prompt_len)

    def act(self, inputs: Inputs) -> Decision | None:
        _, first = self.ends(inputs.num_slots, inputs.prompt_len)
        at = inputs.lens.new_tensor(range(inputs.num_slots))
        return Decision(at >= first)


POLICY = Recent
