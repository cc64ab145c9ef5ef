"""Fair shares by virtual token counters (Fairness in Serving Large Language Models, https://arxiv.org/abs/2401.00588).

Each tenant waits in a lane of its own; the lane that was served least goes next. Service is tokens, an output token
counting ``output_weight``, a prompt token one. A prompt is charged when it starts, before anything is known about its
answer. Between two tenants that always wait, service differs by at most 2 max(prompt of one request, ``output_weight``
x tokens in the KV pool) (theorem 4.4). Deviation: prompt tokens found in the prefix cache cost nothing, and a preempted
request is charged for what it computes again only as output, once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import ConfigError
from ._tenants import TokensServed


@dataclass
class Vtc(TokensServed):
    output_weight: float = 2.0

    def __post_init__(self) -> None:
        if not self.output_weight >= 0:
            raise ConfigError(f"vtc(output_weight={self.output_weight}): give 0 or above")
        super().__post_init__()


POLICY = Vtc
