"""StreamingLLM: the first tokens, where attention rests when it has nothing to look at, and a window of the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ...core.types import Granularity
from ._budget import at_least
from ._scored import Rolling
from .base import Decision

if TYPE_CHECKING:
    from ._inputs import Inputs


@dataclass(frozen=True)
class StreamingLLM(Rolling):
    """``sinks`` first tokens and the newest up to the budget, the same in every head (section 3.2).

    Deviation: keys keep their true positions; the paper renumbers them inside the cache, to run past the trained
    length. Two pages of tokens make room at a time: the pages of the window are linked anew, and only those beside the
    sinks are written (``every=8`` and less move the whole window).

    Says nothing of a fact that has left the window, as in the paper: recall is that of keeping nothing, 25 %.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2309.17453"
    granularity: ClassVar[Granularity] = Granularity.SEQUENCE
    sinks: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("sinks", self.sinks, 0)
        if isinstance(self.budget, int) and (left := self.slots_after(0)) <= self.sinks:
            raise ConfigError(
                f"budget={self.budget} leaves {left} tokens a head after an act (every={self._interval(self.budget)} "
                f"make room), so sinks={self.sinks} leave no window; give a greater budget, or fewer sinks"
            )

    def ends(self, num_slots: int, prompt_len: int) -> tuple[int, int]:
        slots = self.slots_after(prompt_len)
        sinks = min(self.sinks, slots - 1)
        return sinks, num_slots - (slots - sinks)

    def act(self, inputs: Inputs) -> Decision | None:
        sinks, first = self.ends(inputs.num_slots, inputs.prompt_len)
        at = inputs.lens.new_tensor(range(inputs.num_slots))
        return Decision((at < sinks) | (at >= first))


POLICY = StreamingLLM
