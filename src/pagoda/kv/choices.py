"""Which pages the sequences of a step read, side by side for the kernels. Little of it changes from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..kernels.dispatch import profiling, timed
from ..kernels.step import PageChoice
from .pages import Int32s


@dataclass(frozen=True, slots=True)
class Choice:
    """What one sequence brings to a `PageChoice`: its arrays without the axis of sequences. Whoever made it keeps the
    tensors behind its addresses alive for the step. ``grown`` [1] is another number where `OF_PAGES` are others;
    where ``changes``, so may be its `CHANGING` in every step.
    """

    rules: Int32s  # [8]
    alike: float
    persist: float
    marks: npt.NDArray[np.int64]  # [L]
    room: npt.NDArray[np.int64]  # [L]
    given: npt.NDArray[np.int64]  # [L]
    num_given: Int32s  # [L]
    turn: npt.NDArray[np.int64]  # [L]
    outliers: Int32s  # [L]
    full: Int32s  # [L, H]
    keep: Int32s  # [L, H]
    scores: npt.NDArray[np.int64]  # [L, H]
    fresh: npt.NDArray[np.uint8]  # [L, H]
    turns: npt.NDArray[np.int64]  # [L]
    query: npt.NDArray[np.int64]  # [L]
    noted: npt.NDArray[np.int64]  # [L]
    weights: npt.NDArray[np.int64]  # [L]
    metric: npt.NDArray[np.int64]  # [L]
    freq: npt.NDArray[np.int64]  # [L]
    changes: bool = False
    grown: list[int] = field(default_factory=lambda: [0])


CHANGING = ("turn", "fresh")
OF_PAGES = ("outliers", "full", "keep")


class Chooser(Protocol):
    """Says which pages a sequence of one token reads in a layer; see ``StepView``. Where ``has_rule``, ``choice`` does
    the same for all layers at once: the same object as in the step before while it stands. One of the two is asked,
    once a step. Where it ``moves`` keys, ``copies`` is: what is read, k ``[H, K, page_size, Dk]`` and v, and how many
    slots of it there are.
    """

    @property
    def has_rule(self) -> bool: ...

    def choice(self) -> Choice: ...

    def choose(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor]: ...

    @property
    def moves(self) -> bool: ...

    def copies(self, layer: int, q: Tensor, scale: float) -> tuple[Tensor, Tensor, int]: ...


class Choices:
    """The choices of one step after the other. Valid until the next is asked for."""

    def __init__(self) -> None:
        self._each: list[Choice] = []  # of the last step
        self._grown: list[int] = []  # what theirs was
        self._at: list[int] = []
        self._joined: PageChoice | None = None

    def of(self, choosers: Mapping[int, Chooser]) -> PageChoice:
        """Those of the choosing sequences (by index in the batch)."""
        join = timed("choosers", self._join) if profiling() else self._join
        joined: PageChoice = join(choosers)
        return joined

    def _join(self, choosers: Mapping[int, Chooser]) -> PageChoice:
        each, at = [chooser.choice() for chooser in choosers.values()], list(choosers)
        before: Sequence[Choice | None] = self._each
        if self._joined is None or len(before) != len(each):
            before, self._joined, self._at = [None] * len(each), _room(len(each), each[0]), []
        joined = self._joined
        if at != self._at:
            joined.seqs[:], self._at = at, at
        for c, (one, last) in enumerate(zip(each, before, strict=True)):
            if one is not last:
                joined.rules[c], joined.alike[c], joined.persist[c] = one.rules, one.alike, one.persist
                _put(joined, c, one, OF_LAYERS)
                continue
            if one.grown[0] != self._grown[c]:
                _put(joined, c, one, OF_PAGES)
            if one.changes:
                _put(joined, c, one, CHANGING)
        self._each, self._grown = each, [one.grown[0] for one in each]
        return joined


OF_LAYERS = PageChoice.__slots__[4:]


def _room(count: int, like: Choice) -> PageChoice:
    def side_by_side(one: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.zeros((len(one), count, *one.shape[1:]), one.dtype)

    rules, (alike, persist) = np.zeros((count, len(like.rules)), np.int32), np.zeros((2, count), np.float32)
    arrays = (side_by_side(getattr(like, name)) for name in OF_LAYERS)
    return PageChoice(np.zeros(count, np.int32), rules, alike, persist, *arrays)  # type: ignore[arg-type]


def _put(joined: PageChoice, c: int, one: Choice, names: Sequence[str]) -> None:
    for name in names:
        getattr(joined, name)[:, c] = getattr(one, name)
