"""Loki: keys live in few dimensions, and scores in those rank them almost as the whole would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._pages import Look, PageSelection

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Loki(PageSelection):
    """Approximate attention from the ``rank`` leading principal components of a head's keys (section 4), the highest
    token of each page.

    Deviations: components are those of the sequence's own prompt, found when it is first looked at, not calibrated
    beforehand; pages are fetched, not single tokens.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.02542"
    rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("rank", self.rank, 1)

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        if "basis" not in memory:
            flat = keys.flatten(1, 2)
            _, vectors = _eigh(flat)
            memory["basis"] = vectors[..., -self.rank :]
        return keys @ memory["basis"][:, None]

    def score(self, look: Look) -> Tensor:
        heads, pages, size, rank = look.sketches.shape
        q = look.queries @ look.memory["basis"]
        logits = q @ look.sketches.reshape(heads, pages * size, rank).transpose(1, 2)
        return logits.amax(1).view(heads, pages, size).amax(-1)


def _eigh(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending) and eigenvectors [H, D, D] of the keys' second moments."""
    import torch

    values, vectors = torch.linalg.eigh((flat.transpose(1, 2) @ flat).double())
    return values, vectors.float()


POLICY = Loki
