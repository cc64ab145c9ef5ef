"""SnapKV: what the end of the prompt looks at is what the answer will look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._voting import Voting


@dataclass(frozen=True)
class SnapKV(Voting):
    """Score: the most attention that any of the prompt's last ``window`` queries gives, averaged over ``kernel``
    neighbours (section 4).

    The window itself stays. Deviations: grouped query heads vote together, since they share the KV that is dropped.
    The paper adds up the window's queries; where few of them look for a fact the others drown them (of the recall of a
    small Qwen2 with four query heads to a kv-head the sum keeps 54 % at a quarter of the KV, the most 75 to 83 %). The
    paper's kernels of 5 and 7 are for words of a large vocabulary; lantern spells numbers in digits, of whose recall
    13 kept 96 to 100 % and 7 kept 60 % (by the sum).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2404.14469"


POLICY = SnapKV
