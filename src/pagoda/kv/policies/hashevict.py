"""HashEvict: sign bits of random projections tell which keys point away from the query."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from ...core.errors import ConfigError
from ._budget import at_least
from ._scored import Rolling, Scored
from .base import By, Held, Need, Ranking

if TYPE_CHECKING:
    from torch import Tensor, device

    from ._inputs import Inputs


@dataclass(frozen=True)
class HashEvict(Scored, Rolling):
    """Score: minus the Hamming distance between the hashes (``bits`` signs of Gaussian projections, one set for all) of
    a slot's key and of the newest query, summed over the group's heads; ``keep_recent`` and ``sinks`` stay (section 3).

    Deviation: drops before the next token rather than before this one's attention, ``every`` tokens at once.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.16187"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.KEYS})
    tracks: ClassVar[tuple[str, ...]] = ("hash",)  # a whole number, one bit a plane
    by: ClassVar[By] = By.HASHES
    bits: int = 16
    sinks: int = 4
    keep_recent: int = 10

    def __post_init__(self) -> None:
        from ...kernels.ops.hash_slots import MOST_BITS

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

    def ranks(self, held: Held) -> Ranking | None:
        ranking = super().ranks(held)
        if ranking is None:
            return None
        seen = held.memory.get("judged", 0)
        assert isinstance(seen, int)
        held.memory["judged"], ranking.unhashed = held.num_seen, held.num_seen - seen
        ranking.planes = _planes(held.k_dim, self.bits, "cpu")
        return ranking

    def scores(self, inputs: Inputs) -> Tensor:
        from ...kernels.ops import hash_scores

        assert inputs.queries is not None
        held, planes = inputs.tracks["hash"], _planes(inputs.queries.shape[-1], self.bits, inputs.lens.device)
        inputs.hash_new(held, planes)
        # bits x heads, less twice the Hamming distances
        return hash_scores(held, inputs.queries.select(1, -1), planes)


@lru_cache(maxsize=8)
def _planes(width: int, bits: int, device: device | str) -> Tensor:
    """[width, bits], the same in every process."""
    import torch

    return torch.randn(width, bits, generator=torch.Generator().manual_seed(0)).to(device)


POLICY = HashEvict
