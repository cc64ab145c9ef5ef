"""Keep tokens drawn at random, other ones in each head: the other control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._scored import Rolling, Scored

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


@dataclass(frozen=True)
class Random(Scored, Rolling):
    """The draw depends on the request's seed and the tokens seen, on nothing else; the newest token always stays."""

    def scores(self, inputs: Inputs) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed((inputs.seed * 1_000_003 + inputs.num_seen) % 2**63)
        return torch.rand(*inputs.lens.shape, inputs.num_slots, generator=generator).to(inputs.lens.device)


POLICY = Random
