"""Finch: the question at the end of the prompt chooses what of the document stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._voting import Voting


@dataclass(frozen=True)
class Finch(Voting):
    """Score: the most attention that any token of the question (the prompt's last ``window`` tokens) gives; the paper
    adds it up and divides by the number of the question's tokens that could see the slot (section 3.2), which is all of
    them for every slot that may go.

    Deviations: the most instead of the sum, as snapkv and for its reasons; the document is one chunk, since pages do
    not have to fit a small cache while it is read (so the choice is snapkv's with such a window); keys keep their true
    positions; where the question begins is a parameter, not a separator token; scores are averaged over
    ``kernel`` neighbours as snapkv's are (the paper has ``kernel=1``: of lantern's recall, which spells numbers in
    digits, that keeps 25 % at a quarter of the KV).
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2408.00167"


POLICY = Finch
