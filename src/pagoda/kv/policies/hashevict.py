"""HashEvict: sign bits of random projections tell which keys point away from the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._scored import Rolling, Scored
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor

    from ._inputs import LayerInputs


@dataclass(frozen=True)
class HashEvict(Scored, Rolling):
    """Score: minus the Hamming distance between the hashes (``bits`` signs of Gaussian projections, one set for all) of
    a slot's key and of the newest query, summed over the group's heads; ``keep_recent`` and ``sinks`` stay (section 3).

    Deviations: drops before the next token rather than before this one's attention, ``every`` tokens at once; hashes
    are computed from the keys at each act instead of being kept.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2412.16187"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES, Need.KEYS})
    bits: int = 16
    sinks: int = 4
    keep_recent: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("bits", self.bits, 1)
        at_least("sinks", self.sinks, 0)
        at_least("keep_recent", self.keep_recent, 1)

    @property
    def window(self) -> int:
        return 1

    def recent(self, slots: int) -> int:
        return self.keep_recent

    def score(self, layer: LayerInputs) -> Tensor:
        import torch

        assert layer.queries is not None
        keys, width = layer.keys, layer.keys.shape[-1]
        planes = torch.randn(width, self.bits, generator=torch.Generator().manual_seed(0)).to(keys.device)
        query = layer.queries[-1].view(keys.shape[0], -1, width)
        differ = (keys @ planes > 0)[:, None] ^ (query @ planes > 0)[:, :, None]
        return -differ.sum((1, 3)).float()


POLICY = HashEvict
