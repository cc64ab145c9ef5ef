"""HashEvict: sign bits of random projections tell which keys point away from the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._budget import at_least
from ._scored import Rolling, Scored
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import Inputs


MOST_BITS = 24
"""Whole numbers up to there are exact in float32."""


@dataclass(frozen=True)
class HashEvict(Scored, Rolling):
    """Score: minus the Hamming distance between the hashes (``bits`` signs of Gaussian projections, one set for all) of
    a slot's key and of the newest query, summed over the group's heads; ``keep_recent`` and ``sinks`` stay (section 3).

    Deviation: drops before the next token rather than before this one's attention, ``every`` tokens at once.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.16187"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.KEYS})
    tracks: ClassVar[tuple[str, ...]] = ("hash",)  # a whole number, one bit a plane
    bits: int = 16
    sinks: int = 4
    keep_recent: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("bits", self.bits, 1)
        if self.bits > MOST_BITS:
            raise ConfigError(f"bits={self.bits}; a hash is kept in a float32 and has {MOST_BITS} bits at most")
        at_least("sinks", self.sinks, 0)
        at_least("keep_recent", self.keep_recent, 1)

    @property
    def window(self) -> int:
        return 1

    def recent(self, slots: int) -> int:
        return self.keep_recent

    def scores(self, inputs: Inputs) -> Tensor:
        import torch

        assert inputs.queries is not None
        held, seen = inputs.tracks["hash"], inputs.memory.get("seen", 0)
        assert isinstance(seen, int)
        num_new, inputs.memory["seen"] = inputs.num_seen - seen, inputs.num_seen
        planes = torch.randn(inputs.queries.shape[-1], self.bits, generator=torch.Generator().manual_seed(0))
        planes, bits = planes.to(held.device), torch.arange(self.bits, device=held.device)
        newest = inputs.lens - num_new
        for layers, k, _ in inputs.parts(newest, num_new):
            hashes = (k @ planes > 0).float() @ (2.0**bits)  # exact: a sum of powers of two below 2^24
            slots = newest[layers.start : layers.stop, :, None] + torch.arange(num_new, device=held.device)
            held[layers.start : layers.stop].scatter_(-1, slots, hashes)
        signs = (held.int()[..., None] >> bits.int() & 1).float() * 2 - 1  # [L, H, N, bits]
        query = (inputs.queries[:, -1] @ planes > 0).float() * 2 - 1
        votes = query.view(*inputs.lens.shape, -1, self.bits).sum(2)  # of the group's heads
        return (signs @ votes[..., None])[..., 0]  # bits x heads, less twice the Hamming distances


POLICY = HashEvict
