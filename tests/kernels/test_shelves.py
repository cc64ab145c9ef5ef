"""Pieces of memory on huge pages that they share."""

from __future__ import annotations

import random

import pytest
import torch

from pagoda.kernels.memory import HUGE_BYTES
from pagoda.kernels.shelves import LEAST_BYTES, MOST_BYTES, PAGES, Shelves


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_pieces_lie_side_by_side_and_are_counted() -> None:
    shelves = Shelves()
    one, other = shelves.take(430_000), shelves.take(1_000_000)
    assert other.data_ptr() - one.data_ptr() == -(-430_000 // 64) * 64
    assert one.data_ptr() % HUGE_BYTES == 0
    assert shelves.unused_bytes == HUGE_BYTES - one.numel() - other.numel()
    third = shelves.take(1_000_000)
    assert shelves.unused_bytes == 2 * HUGE_BYTES - one.numel() - other.numel() - third.numel()
    view = other[100:200]
    del other
    assert shelves.unused_bytes == 2 * HUGE_BYTES - one.numel() - 1_000_000 - third.numel(), "a view keeps it"
    del view
    again = shelves.take(1_000_000)
    assert again.data_ptr() < third.data_ptr(), "where the second was"
    del one, third, again
    assert shelves.unused_bytes == 0


def test_a_piece_is_zero_whoever_had_it_before() -> None:
    shelves = Shelves()
    keeps = shelves.take(LEAST_BYTES)
    for size in (LEAST_BYTES, HUGE_BYTES, 5 * HUGE_BYTES // 2, 300_000):
        piece = shelves.take(size)
        assert not piece.any()
        piece.fill_(7)
        del piece
    assert not keeps.any()


def test_what_is_long_or_short_lies_elsewhere() -> None:
    shelves = Shelves()
    pieces = [shelves.take(size) for size in (MOST_BYTES + 64, LEAST_BYTES - 64, 0)]
    assert [piece.numel() for piece in pieces] == [MOST_BYTES + 64, LEAST_BYTES - 64, 0]
    assert shelves.unused_bytes == 0


def test_pages_go_back_to_the_system() -> None:
    shelves, size = Shelves(), 3 * HUGE_BYTES // 2
    pieces = [shelves.take(size).fill_(1) for _ in range(2 * PAGES)]
    before = resident_bytes()
    assert shelves.unused_bytes < 5 * size
    del pieces[1:]
    assert shelves.unused_bytes == 2 * HUGE_BYTES - size
    assert before - resident_bytes() > PAGES * HUGE_BYTES
    assert bool((pieces[0] == 1).all())


@pytest.mark.parametrize("seed", range(3))
def test_no_two_pieces_overlap_whatever_the_order(seed: int) -> None:
    rng, shelves = random.Random(seed), Shelves()
    held: list[tuple[int, torch.Tensor]] = []
    for number in range(1, 200):
        if held and rng.random() < 0.45:
            mark, piece = held.pop(rng.randrange(len(held)))
            assert bool((piece == mark).all())
            del piece
        piece = shelves.take(rng.choice((LEAST_BYTES, 430_000, 3_400_000, rng.randrange(LEAST_BYTES, 1 << 20))))
        assert not piece.any()
        held.append((number % 251 + 1, piece.fill_(number % 251 + 1)))
        del piece
    for mark, piece in held:
        assert bool((piece == mark).all())
    taken = sum(piece.numel() for _, piece in held)
    assert (shelves.unused_bytes + taken) % HUGE_BYTES == 0
    assert shelves.unused_bytes < taken
    held.clear()
    del piece
    assert shelves.unused_bytes == 0
