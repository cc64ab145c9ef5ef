"""Fair shares that reach into what runs (FastSwitch, https://arxiv.org/abs/2411.18424).

A tenant's priority is how little it was served so far; it is looked at again every ``every`` seconds, and then requests
of tenants that were served least take the seats and pages of those that were served ``slack`` tokens more. Without
preemption a fair queue is fair only to those that come: a flood of long answers that is already running stays.

The paper's subject is what such switches cost. Its means, and what stands for them here: block groups (KV is moved in
runs of blocks, not block by block) are page runs; the asynchronous swap manager is the writer's thread of what
is kept, which copies pages out behind the steps, so that giving them up costs nothing; reuse of the copy over turns
comes from pages being found by their content. Deviations: pages move to the disk, or with ``kv_host`` to memory,
packed; the last, partial page is computed again; without either so is all that the prefix cache gave to others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import ConfigError
from ..item import Item, Scheduled
from ._tenants import TokensServed


@dataclass
class Fastswitch(TokensServed):
    """``slack`` in tokens of service (an output token counts ``output_weight``), ``every`` in seconds of steps."""

    output_weight: float = 2.0
    slack: float = 1024.0
    every: float = 1.0

    def __post_init__(self) -> None:
        if not min(self.output_weight, self.slack, self.every) >= 0:
            raise ConfigError(f"fastswitch(slack={self.slack}, every={self.every}, …): all of them are 0 or above")
        super().__post_init__()
        self._frozen: dict[str, float] = {}  # what tenants had been served when it was last looked at
        self._since = float("inf")  # seconds of steps since then

    def may_preempt(self, waiting: Item, running: Item) -> bool:
        if waiting.tenant not in self._frozen or running.tenant not in self._frozen:
            return False
        return self._frozen[running.tenant] - self._frozen[waiting.tenant] > self.slack

    def ran(self, scheduled: Sequence[Scheduled], seconds: float) -> None:
        super().ran(scheduled, seconds)
        self._since += seconds
        if self._since >= self.every:
            self._since, self._frozen = 0.0, {t: self._tenants.served[t] for t in self._tenants.live}


POLICY = Fastswitch
