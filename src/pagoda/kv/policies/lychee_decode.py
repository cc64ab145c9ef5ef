"""LycheeDecode: a few retrieval heads look at everything and choose; the others read what those below chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._budget import share
from ._pages import Look, PageSelection
from .base import Need

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LycheeDecode(PageSelection):
    """A retrieval head attends to all pages and hands the best on to the head of the same number in the next layer; a
    sparse head reads those, and hands them on. Roles come from gates that ``pagoda calibrate
    lychee_decode MODEL`` trains: all heads of the first layer, and the ``retrieval`` share of the others.

    Deviations: pages are handed on, not single tokens, each worth the attention that its tokens get; heads are
    kv-heads, since a group shares what it reads.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2602.04541"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})
    whole: ClassVar[str] = "pages that a head chose are read by heads above it, which must hold the same tokens in them"
    retrieval: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        share("retrieval", self.retrieval)

    def counts(self, full: Sequence[int], learned: Mapping[str, Tensor], layer: int) -> list[int]:
        looks = self._retrieves(learned)
        return [num if look else self.num_pages(num) for num, look in zip(full, looks, strict=True)]

    def _retrieves(self, learned: Mapping[str, Tensor]) -> list[bool]:
        """Whether each head of a layer is a retrieval head. ``ranks`` [H]: share of the heads above the first layer
        whose gate is higher; below 0 in the first.
        """
        return (learned["ranks"] < self.retrieval).tolist()

    def sketch(self, keys: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return keys[..., :0, 0]

    def score(self, look: Look) -> Tensor:
        import torch

        chooses = torch.tensor(self._retrieves(look.learned), device=look.valid.device)
        wanted = look.below.get("wanted")
        if wanted is None or bool(chooses.all()):
            wanted = look.queries.new_zeros(look.valid.shape)
        if bool(chooses.any()):
            wanted = torch.where(chooses[:, None], _attention(look), wanted)
        look.memory["wanted"] = wanted
        return wanted.clone()


def _attention(look: Look) -> Tensor:
    """float32 [H, P]: what the query gives to each full page, summed over the group's heads."""
    keys = look.read_keys()
    logits = look.queries @ keys.flatten(1, 2).transpose(1, 2) * look.scale
    total: Tensor = logits.softmax(-1).sum(1).view(keys.shape[:3]).sum(-1)
    return total


POLICY = LycheeDecode
