"""Choices of pages side by side: what stands is not written again, what changes is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pagoda.kernels.step import PageChoice
from pagoda.kv.choices import Choice, Choices

LAYERS, HEADS = 2, 3


class Chosen:
    """A chooser that gives the same choice until it is given another."""

    has_rule, moves = True, False

    def __init__(self, number: int, changes: bool = False) -> None:
        longs = np.full(LAYERS, number, np.int64)
        ints, heads = np.full(LAYERS, number, np.int32), np.full((LAYERS, HEADS), number, np.int32)
        self.one = Choice(
            rules=np.full(8, number, np.int32), alike=number / 10, persist=-1.0, marks=longs, room=longs, given=longs,
            num_given=ints, turn=longs.copy(), outliers=ints.copy(), full=heads.copy(), keep=heads,
            scores=heads.astype(np.int64), fresh=np.ones((LAYERS, HEADS), np.uint8), turns=longs, query=longs,
            noted=longs, weights=longs, metric=longs, freq=longs, changes=changes,
        )  # fmt: skip

    def choice(self) -> Choice:
        return self.one


def same(found: PageChoice, choosers: dict[int, Chosen]) -> bool:
    """Whether it is what would be made from nothing."""
    fresh = Choices().of(choosers)  # type: ignore[arg-type]
    return all(np.array_equal(getattr(found, name), getattr(fresh, name)) for name in PageChoice.__slots__)


def test_columns_follow_their_sequences() -> None:
    choices, choosers = Choices(), {1: Chosen(3), 4: Chosen(5)}
    first = choices.of(choosers)  # type: ignore[arg-type]
    assert first.seqs.tolist() == [1, 4]
    assert first.rules[:, 0].tolist() == [3, 5]
    assert first.full[:, :, 0].tolist() == [[3, 5]] * LAYERS
    assert first.full.flags.c_contiguous
    assert first.scores.dtype == np.int64
    choosers[4].one = Chosen(8).one
    assert same(choices.of(choosers), choosers)  # type: ignore[arg-type]
    moved = {0: choosers[4], 2: choosers[1]}  # the same number of them in another order
    assert same(choices.of(moved), moved)  # type: ignore[arg-type]
    fewer = {2: choosers[1]}
    assert same(choices.of(fewer), fewer)  # type: ignore[arg-type]


def test_what_changes_is_written_in_every_step() -> None:
    choices, choosers = Choices(), {0: Chosen(1, changes=True), 1: Chosen(2)}
    choices.of(choosers)  # type: ignore[arg-type]
    for chooser in choosers.values():
        chooser.one.turn[:] = 70
        chooser.one.fresh[1] = 0
    choosers[0].one.grown[0] += 1
    found = choices.of(choosers)  # type: ignore[arg-type]
    assert found.turn.tolist() == [[70, 2]] * LAYERS
    assert found.fresh[1, :, 0].tolist() == [0, 1]
    choosers[1].one = replace(choosers[1].one)  # another object: written as a whole
    assert choices.of(choosers).turn.tolist() == [[70, 70]] * LAYERS  # type: ignore[arg-type]


def test_what_grew_is_written_once_it_did() -> None:
    """Also where others joined them in the meantime, who know nothing of the step in which it grew."""
    choices, choosers = Choices(), {0: Chosen(1), 1: Chosen(2)}
    choices.of(choosers)  # type: ignore[arg-type]
    one = choosers[1].one
    one.full[:], one.keep[:], one.outliers[:] = 9, 4, 3
    assert choices.of(choosers).full[:, :, 0].tolist() == [[1, 2]] * LAYERS  # type: ignore[arg-type]
    one.grown[0] += 1
    elsewhere = Choices().of(choosers)  # type: ignore[arg-type]
    found = choices.of(choosers)  # type: ignore[arg-type]
    assert same(found, choosers)
    assert found.keep[:, :, 0].tolist() == elsewhere.keep[:, :, 0].tolist() == [[1, 4]] * LAYERS
