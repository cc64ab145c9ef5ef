"""Acts of several sequences in one call, against an op and a table one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagoda.core.types import Granularity, KVFormat
from pagoda.kernels.acts import able, new_act, run_acts
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import evict, hash_scores, hash_slots, kv_write, weigh_slots
from pagoda.kv.policies._vote import pool_mean
from pagoda.kv.policies.base import By
from pagoda.kv.table import PageTable

LAYERS, HEADS, SIZE, DIMS = 2, 2, 4, (16, 8)
ROWS = LAYERS * HEADS
FMT = KVFormat(LAYERS, HEADS, *DIMS, SIZE, "float32")
LAYOUT = PageLayout(SIZE, *DIMS, torch.float32)
NUM_PAGES = ROWS * 3 * ROWS * 9  # three tables, whose rows have up to eight pages and one reserved

pytestmark = pytest.mark.skipif(not able(torch.empty(0)), reason="no C++ kernels")


@dataclass
class World:
    """Pages, tables that share none of them, what is remembered of their slots."""

    rng: np.random.Generator
    pages: Tensor = field(init=False)
    refs: np.ndarray = field(init=False)
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.pages = torch.from_numpy(self.rng.standard_normal((NUM_PAGES, LAYOUT.page_elems)).astype(np.float32))
        self.refs = np.zeros(NUM_PAGES, np.int32)
        self.free = self.rng.permutation(NUM_PAGES // ROWS).tolist()

    def table(self, lens: list[int], reserved: int, granularity: Granularity = Granularity.HEAD) -> PageTable:
        table = PageTable(FMT, granularity)
        table.lens[:], table.counts[:] = lens, [-(-one // SIZE) + reserved for one in lens]
        table.bases = np.zeros((table.num_rows, int(table.counts.max()) + 2), np.int32)
        for row, count in enumerate(table.counts):
            for column in range(count):
                table.bases[row, column] = base = self.free.pop() * ROWS
                self.refs[base : base + table.run] = 1
        table.measure()
        return table

    def remembered(self, table: PageTable, whole: int | None = None) -> Tensor:
        """[L, H, C], zero behind a head's slots; of ``whole`` values each."""
        width = int(table.lens.max()) + int(self.rng.integers(0, 5))
        values = np.abs(self.rng.standard_normal((ROWS, width))).astype(np.float32)
        if whole is not None:
            values = self.rng.integers(0, whole, (ROWS, width)).astype(np.float32)
        values[np.arange(width) >= table.lens[:, None]] = 0
        return torch.from_numpy(values).view(LAYERS, HEADS, width)


def place(values: Tensor) -> tuple[int, int]:
    return values.data_ptr(), values.shape[2]


def same_table(one: PageTable, other: PageTable, room: int) -> None:
    assert (one.lens == other.lens).all()
    assert (one.counts == other.counts).all()
    assert (one.bases == other.bases).all()
    assert room == other.room


def twin_of(table: PageTable) -> PageTable:
    twin = PageTable(FMT, table.granularity)
    twin.bases, twin.counts, twin.lens = table.bases.copy(), table.counts.copy(), table.lens.copy()
    return twin


LENS = st.lists(st.integers(1, 30), min_size=ROWS, max_size=ROWS) | st.integers(1, 30).map(lambda n: [n] * ROWS)


@dataclass
class Ranked:
    """What one act is told, and what its scores are."""

    act: Any
    table: PageTable
    twin: PageTable
    first: Tensor
    second: Tensor
    options: dict[str, Any]
    by: By
    stem: tuple[int, int]
    budgets: Tensor

    def scores(self) -> Tensor | None:
        most = int(self.twin.lens.max())
        first, second = self.first[..., :most], self.second[..., :most]
        if self.by is By.AGE:
            return None
        if self.by is By.COUNTED:
            return second + first / (first.amax(-1, keepdim=True) + 1.0)
        return first.masked_fill(second == 0, 0.0) if self.by is By.WANTED else first


def ranked(world: World, data: st.DataObject, lens: list[int]) -> tuple[Ranked, Tensor, Tensor]:
    by = data.draw(st.sampled_from([By.AGE, By.MASS, By.RECEIVED, By.COUNTED, By.WANTED]))
    table = world.table(lens, data.draw(st.integers(0, 1)))
    first, second = world.remembered(table), world.remembered(table, 3)
    budget = data.draw(st.integers(1, 20))
    options = {
        "sinks": data.draw(st.integers(0, 3)), "recent": data.draw(st.integers(1, 5)),
        "least": data.draw(st.sampled_from([-float("inf"), 1e-30, 0.5])), "pool": data.draw(st.sampled_from([1, 3, 5])),
    }  # fmt: skip
    stem = (0, 0)
    if by is By.RECEIVED and data.draw(st.booleans()):
        stem = (head := data.draw(st.integers(1, min(lens)))), data.draw(st.integers(1, head))
        options["sinks"] = 0
    act = new_act(table.bases, table.counts, table.lens, 1)
    each = data.draw(st.booleans())
    budgets = torch.tensor([budget + row for row in range(ROWS)]) if each else torch.full((ROWS,), budget)
    given = (budgets.data_ptr(), 0) if each else (0, budget)
    twin = twin_of(table)
    act.rank(int(by), place(first), place(second), *given, *options.values(), *stem, [place(first)], [place(second)])
    one = Ranked(act, table, twin, first.clone(), second.clone(), options, by, stem, budgets)
    return one, first, second


@settings(max_examples=120, deadline=None)
@given(st.data(), st.integers(0, 1 << 30))
def test_ranked_acts_are_those_of_the_op_and_the_table(data: st.DataObject, seed: int) -> None:
    world = World(np.random.default_rng(seed))
    made = [ranked(world, data, data.draw(LENS)) for _ in range(data.draw(st.integers(1, 3)))]
    pages = world.pages.clone()
    run_acts(world.pages, LAYOUT, world.refs, [one.act for one, _, _ in made])
    for one, first, second in made:
        scores, most, left = one.scores(), int(one.twin.lens.max()), torch.zeros(ROWS, dtype=torch.int32)
        lens, held = torch.from_numpy(one.twin.lens).long(), int(one.twin.lens.sum())
        if one.stem[0]:
            scores = pool_mean(scores.flatten(0, 1), one.options["pool"]).view(scores.shape)
            head = scores[..., : one.stem[0]]
            rank = head.flip(-1).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1).flip(-1)
            scores[..., : one.stem[0]] = torch.where(rank < one.stem[1], float("inf"), -float("inf"))
            one.options["pool"] = 1
        moved = one.first.clone()
        evict(
            pages, LAYOUT, torch.from_numpy(one.twin.bases), lens, one.budgets, most, left, scores=scores,
            values=[moved], **one.options,
        )  # fmt: skip
        freed = one.twin.cut(left.numpy().copy())
        same_table(one.table, one.twin, one.act.room)
        assert one.act.dropped == held - int(left.sum())
        assert sorted(one.act.freed) == sorted(freed.tolist())
        assert not world.refs[freed].any()
        assert world.refs.sum() == sum(int(other.table.counts.sum()) for other, _, _ in made)
        assert torch.equal(first, moved)
        assert not second.any()
        for row in range(ROWS):
            for slot in range(one.table.lens[row]):
                page, at = one.table.bases[row, slot // SIZE], slot % SIZE
                assert torch.equal(LAYOUT.k(world.pages)[page, at], LAYOUT.k(pages)[page, at])
                assert torch.equal(LAYOUT.v(world.pages)[page, at], LAYOUT.v(pages)[page, at])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 40), st.integers(0, 1), st.data())
def test_a_window_that_moves_on_keeps_the_ends_and_writes_few_of_them(
    seed: int, held: int, reserved: int, data: st.DataObject
) -> None:
    world = World(np.random.default_rng(seed))
    table = world.table([held], reserved, Granularity.SEQUENCE)
    sinks = data.draw(st.integers(0, held - 2))
    start = data.draw(st.integers(sinks + 1, held))
    before, had = world.pages.clone(), table.bases[0, : table.counts[0]].copy()
    kept = [*range(sinks), *range(start, held)]
    act = new_act(table.bases, table.counts, table.lens, table.run)
    act.slide(sinks, start)
    run_acts(world.pages, LAYOUT, world.refs, [act])
    assert table.lens[0] == len(kept)
    assert act.dropped == (start - sinks) * ROWS
    assert act.room == -len(kept) % SIZE
    bases = table.bases[0, : table.counts[0]].tolist()
    assert sorted([*bases, *act.freed]) == sorted(had.tolist())
    assert not table.bases[0, table.counts[0] :].any()
    for base in had:
        assert (world.refs[base : base + ROWS] == (base in bases)).all()
    for slot, source in enumerate(kept):
        for row in range(ROWS):
            now, then = bases[slot // SIZE] + row, had[source // SIZE] + row
            assert torch.equal(LAYOUT.k(world.pages)[now, slot % SIZE], LAYOUT.k(before)[then, source % SIZE])
            assert torch.equal(LAYOUT.v(world.pages)[now, slot % SIZE], LAYOUT.v(before)[then, source % SIZE])
    if (start - sinks) % SIZE == 0 and -(-sinks // SIZE) * SIZE < len(kept):
        changed = (world.pages != before).any(1).sum()
        assert changed <= (sinks % SIZE > 0) * ROWS, "pages behind the sinks are linked, not written"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), LENS, st.integers(1, 12), st.data())
def test_hashes_are_made_and_compared(seed: int, lens: list[int], budget: int, data: st.DataObject) -> None:
    world = World(np.random.default_rng(seed))
    table = world.table(lens, 0)
    held, make = world.remembered(table, 1 << 7), torch.Generator().manual_seed(seed)
    planes, queries = torch.randn(DIMS[0], 7, generator=make), torch.randn(LAYERS, 3 * HEADS, DIMS[0], generator=make)
    unhashed, twin, expected, pages = (
        data.draw(st.integers(0, min(lens))),
        twin_of(table),
        held.clone(),
        world.pages.clone(),
    )
    act = new_act(table.bases, table.counts, table.lens, 1)
    act.rank(int(By.HASHES), place(held), (0, 0), 0, budget, 1, 2, -float("inf"), 1, 0, 0, [place(held)], [])
    act.hash(planes.data_ptr(), 7, queries.data_ptr(), 3, unhashed)
    run_acts(world.pages, LAYOUT, world.refs, [act])
    rows, slots = torch.from_numpy(twin.bases), torch.from_numpy(twin.lens).long()
    hash_slots(pages, LAYOUT, rows, slots - unhashed, unhashed, planes, expected)
    scores = hash_scores(expected[..., : max(lens)], queries, planes)
    left = torch.zeros(ROWS, dtype=torch.int32)
    evict(
        pages, LAYOUT, rows, slots, torch.full((ROWS,), budget), max(lens), left, scores=scores, sinks=1, recent=2,
        values=[expected],
    )  # fmt: skip
    assert torch.equal(held, expected)
    assert left.tolist() == table.lens.tolist()
    assert torch.equal(world.pages, pages)


def test_slots_go_on_in_one_of_them() -> None:
    world = World(np.random.default_rng(4))
    table = world.table([22, 14, 14, 22], 0)
    pairs, twin, pages = torch.tensor([1, 2]), twin_of(table), world.pages.clone()
    act = new_act(table.bases, table.counts, table.lens, 1)
    budgets = torch.tensor([99, 9, 9, 99])
    act.rank(int(By.AGE), (0, 0), (0, 0), budgets.data_ptr(), 0, 3, 6, -float("inf"), 1, 0, 0, [], [])
    act.blend(pairs.data_ptr(), 2, 2, 6, 5 / 10, 1 / 10)
    run_acts(world.pages, LAYOUT, world.refs, [act])
    rows, first = torch.from_numpy(twin.bases), torch.tensor([2, 2])
    weights = torch.full((2, 6), 0.1)
    weights[:, 0] = 0.5
    k, v = weigh_slots(pages, LAYOUT, rows[pairs], first, weights)
    kv_write(k[:, None], v[:, None], pages, LAYOUT, rows[pairs, :1], torch.full((2, 1), 2, dtype=torch.int32))
    left = torch.zeros(ROWS, dtype=torch.int32)
    evict(pages, LAYOUT, rows, torch.from_numpy(twin.lens).long(), budgets, 22, left, sinks=3, recent=6)
    assert left.tolist() == table.lens.tolist() == [22, 9, 9, 22]
    assert torch.equal(world.pages, pages)


@pytest.mark.parametrize("harm", ["page", "owner", "length", "slots"])
def test_nothing_is_touched_where_a_table_is_wrong(harm: str) -> None:
    world = World(np.random.default_rng(1))
    right, wrong = (world.table([9], 0, Granularity.SEQUENCE) for _ in range(2))
    acts = [new_act(table.bases, table.counts, table.lens, table.run) for table in (right, wrong)]
    acts[0].slide(1, 5)
    acts[1].slide(1, 5 if harm != "slots" else 10)
    if harm == "page":
        wrong.bases[0, 2] = NUM_PAGES
    if harm == "owner":
        world.refs[wrong.bases[0, 1] + 1] = 2
    if harm == "length":
        wrong.lens[0] = 13
    pages, refs = world.pages.clone(), world.refs.copy()
    with pytest.raises((IndexError, RuntimeError)):
        run_acts(world.pages, LAYOUT, world.refs, acts)
    assert torch.equal(world.pages, pages)
    assert (world.refs == refs).all()
    assert right.lens[0] == 9
