"""What is still to be measured, and in which order. Decisions only; nothing here runs anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .store import Repetition

ATTEMPTS = 2  # times the rounds: a repetition that was not alone is repeated, but not for ever

Cell = tuple[str, str, str]  # shape, weights, setting


def lacking(repetitions: Iterable[Repetition], cell: Cell, engines: Sequence[str], rounds: int) -> dict[str, int]:
    """Engine -> clean repetitions that it still owes; one that failed, or used up its attempts, owes nothing."""
    clean: Counter[str] = Counter()
    tries: Counter[str] = Counter()
    failed = set()
    for repetition in repetitions:
        if repetition.cell == cell:
            clean[repetition.engine] += repetition.clean
            tries[repetition.engine] += 1
            if repetition.failure:
                failed.add(repetition.engine)
    owed = {name: min(rounds - clean[name], ATTEMPTS * rounds - tries[name]) for name in engines}
    return {name: count for name, count in owed.items() if count > 0 and name not in failed}


def queue(owed: dict[str, int], rounds: int) -> list[tuple[int, str]]:
    """(round, engine) as A B C, B C A, …: all engines of a round close together in time, nobody always the first.

    One that owes less than others joins from the round on that it has not done.
    """
    order = []
    for number in range(rounds):
        names = [name for name, count in owed.items() if number >= rounds - count]
        turn = number % len(names) if names else 0
        order += [(number, name) for name in names[turn:] + names[:turn]]
    return order
