"""Page tables: rows, places, growth, cuts, copies."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.core.types import Granularity
from pagoda.kv.table import PageTable, SlotMoves, expand_runs

from .world import fmt_of

FMT = fmt_of(2, 3, page_size=4)
S, L, H = Granularity.SEQUENCE, Granularity.LAYER, Granularity.HEAD


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_runs_are_cut_in_order() -> None:
    assert expand_runs(ids(6, 0), 6, 3).tolist() == [6, 9, 0, 3]
    assert expand_runs(ids(6), 6, 1).tolist() == [6, 7, 8, 9, 10, 11]
    assert expand_runs(ids(3, 9), 3, 3).tolist() == [3, 9]


@pytest.mark.parametrize(("grain", "rows"), [(S, 1), (L, 2), (H, 6)])
def test_every_granularity_finds_the_page_of_every_head(grain: Granularity, rows: int) -> None:
    """The same two blocks, seen by each: block 3, then block 1."""
    table = PageTable(FMT, grain)
    assert table.num_rows == rows
    table.adopt(np.stack([expand_runs(ids(18), 6, table.run), expand_runs(ids(6), 6, table.run)]))
    for layer in range(2):
        for head in range(3):
            place = layer * 3 + head
            assert table.length(layer, head) == 8
            assert table.locate(layer, head, 2) == (18 + place, 2)
            assert table.locate(layer, head, 7) == (6 + place, 3)
    assert sorted(table.pages().tolist()) == [*range(6, 12), *range(18, 24)]
    assert table.num_pages == 12


def test_rows_of_one_length_grow_by_columns() -> None:
    table = PageTable(FMT, L)
    assert table.missing_runs(9).tolist() == [3, 3]
    table.append(table.missing_runs(9), ids(0, 3, 6, 9, 12, 15))
    assert table.bases[:, :3].tolist() == [[0, 6, 12], [3, 9, 15]]
    assert table.room == 12
    table.advance(9)
    assert (table.room, table.num_tokens) == (3, 9)
    rows, columns = table.open_cells()
    assert rows.tolist() == [0, 1]
    assert columns.tolist() == [2, 2]
    assert table.missing_runs(3).tolist() == [0, 0]
    table.append(table.missing_runs(20), ids(*range(18, 48, 3)))
    assert table.counts.tolist() == [8, 8]


def test_rows_of_different_lengths_grow_each_by_its_own() -> None:
    table = PageTable(FMT, L)
    table.append(table.missing_runs(8), ids(0, 3, 6, 9))
    table.advance(8)
    assert table.cut(ids(5, 2)).tolist() == [9]
    assert (table.counts.tolist(), table.room, table.tail_owned) == ([2, 1], 2, False)
    missing = table.missing_runs(7)
    assert missing.tolist() == [1, 2]
    table.append(missing, ids(21, 24, 27))
    held = [table.bases[row, : table.counts[row]].tolist() for row in range(2)]
    assert held[0][:2] == [0, 6]
    assert held[1][:1] == [3]
    assert sorted(held[0][2:] + held[1][1:]) == [21, 24, 27]
    assert table.runs().tolist() == held[0] + held[1]
    assert table.room == 7


def test_a_cut_clears_the_cells_and_reserved_runs() -> None:
    table = PageTable(FMT, S)
    table.append(ids(3), ids(0, 6, 12))
    table.advance(5)
    assert table.cut(ids(4)).tolist() == [6, 12]
    assert table.bases[0, :3].tolist() == [0, 0, 0]
    assert table.cut(ids(0)).tolist() == [0]
    assert table.room == 0


def test_a_copy_has_written_pages_only_and_its_own_arrays() -> None:
    table = PageTable(FMT, S)
    table.append(ids(3), ids(6, 12, 18))
    table.advance(5)
    twin = table.copy()
    assert (twin.runs().tolist(), twin.room, twin.tail_owned) == ([6, 12], 3, False)
    twin.advance(1)
    assert (table.num_tokens, table.lens.tolist()) == (5, [5])
    assert PageTable(FMT, H).copy().num_pages == 0


@pytest.mark.parametrize("grain", [S, L])
def test_a_refined_table_has_the_same_places(grain: Granularity) -> None:
    table = PageTable(FMT, grain)
    table.append(table.missing_runs(6), expand_runs(ids(18, 6), 6, table.run))
    table.advance(6)
    before = [table.locate(layer, head, slot) for layer in range(2) for head in range(3) for slot in range(6)]
    table.refine()
    assert (table.granularity, table.num_rows, table.num_pages, table.room) == (H, 6, 12, 2)
    assert before == [table.locate(layer, head, slot) for layer in range(2) for head in range(3) for slot in range(6)]
    assert not table.bases[:, 2:].any()


def test_moves_join_and_iterate() -> None:
    one = SlotMoves(ids(1), ids(2), ids(3), ids(0))
    both = SlotMoves.join([one, SlotMoves(ids(4), ids(1), ids(3), ids(1))])
    assert list(both) == [(1, 2, 3, 0), (4, 1, 3, 1)]
    assert len(both) == 2
    assert len(SlotMoves.join([])) == 0


@pytest.mark.parametrize("lens", [[9, 9, 9, 9, 9, 9], [9, 0, 12, 11, 4, 12], [12] * 6])
def test_few_rows_are_cut_as_many_are(monkeypatch: pytest.MonkeyPatch, lens: list[int]) -> None:
    """One by one, all alike, and as arrays: the same table and the same runs."""
    found = []
    for few in (64, 0):
        monkeypatch.setattr("pagoda.kv.table.FEW_ROWS", few)
        table = PageTable(FMT, H)
        table.append(table.missing_runs(12), ids(*range(18)))
        table.advance(12)
        table.append(table.missing_runs(3), ids(*range(18, 24)))
        runs = table.cut(ids(*lens))
        state = [table.bases.tolist(), table.counts.tolist(), table.lens.tolist(), table.room, table.num_pages]
        found.append((runs.tolist(), state, table.tail_owned, table.edits))
        assert sorted([*runs.tolist(), *table.runs().tolist()]) == list(range(24))
    assert found[0] == found[1]
