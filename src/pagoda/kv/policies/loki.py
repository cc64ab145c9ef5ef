"""Loki: keys live in few dimensions, and scores in those rank them almost as the whole would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import at_least
from ._pages import PageSelection, byte_marks

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.ops.page_scores import PageRule


@dataclass(frozen=True)
class Loki(PageSelection):
    """Approximate attention from the ``rank`` leading principal components of a head's keys (section 4), the highest
    token of each page. The first page is always read: attention rests on the first tokens when it has nothing to look
    at, and components that tell keys apart say little of that (lantern's KL without it is 0.084, with it 0.021).

    Keys in those components are held as bytes, with a scale for each token, and so are the components' own numbers: a
    choice of 400 tokens reads 118 lines of memory, where it read 190 of float32 components and scales.

    Deviations: products are those of the rounded numbers; components are those of the sequence's own prompt, found when
    it is first looked at, not calibrated beforehand; pages are fetched, not single tokens.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.02542"
    marked: ClassVar[bool] = True
    keeps_first: ClassVar[bool] = True
    rank: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("rank", self.rank, 1)

    def mark_bytes(self, page_size: int, dim: int) -> float:
        return byte_marks(page_size, min(self.rank, dim))

    def rule(self) -> PageRule:
        from ...kernels.ops.page_scores import PageRule

        return PageRule("bytes", "project")

    def given(self, memory: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> Tensor:
        return memory["basis"]

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        from torch.nn.functional import pad

        from ...kernels.ops.page_scores import in_128ths, in_bytes, unscaled

        if "basis" not in memory:
            basis = _eigh(keys.flatten(1, 2))[1][..., -self.rank :]
            memory["basis"] = in_128ths(pad(basis, (0, -basis.shape[-1] % 4)))  # channels in fours
        return in_bytes(keys @ unscaled(memory["basis"])[:, None])


def _eigh(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending) and eigenvectors [H, D, D] of the keys' covariance. What all keys have in common adds the
    same to every product and tells none apart: left in, it took the first of sixteen components (recall 90 %, not 97).
    """
    import torch

    apart = flat - flat.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh((apart.transpose(1, 2) @ apart).double())
    return values, vectors.float()


POLICY = Loki
