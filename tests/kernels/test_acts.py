"""Acts of several sequences at once, against an op and a table one after the other."""

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
from pagoda.kernels.acts import able, choose_acts, look, new_act, num_copies, run_acts
from pagoda.kernels.layout import PageLayout
from pagoda.kernels.ops import evict, hash_scores, hash_slots, kv_write, read_slots, weigh_slots
from pagoda.kv.policies._inputs import Inputs
from pagoda.kv.policies._vote import pool_mean, without_window
from pagoda.kv.policies.base import By
from pagoda.kv.table import PageTable

LAYERS, HEADS, SIZE, DIMS = 2, 2, 4, (16, 8)
ROWS = LAYERS * HEADS
FMT = KVFormat(LAYERS, HEADS, *DIMS, SIZE, "float32")
LAYOUT = PageLayout(SIZE, *DIMS, torch.float32)
NUM_PAGES = ROWS * 3 * ROWS * 14  # three tables, whose rows have up to eight pages and one reserved, and copies

pytestmark = pytest.mark.skipif(not able(torch.empty(0)), reason="no C++ kernels")


@dataclass
class World:
    """Pages, tables, what is remembered of their slots; ``share`` gives pages further owners."""

    rng: np.random.Generator
    pages: Tensor = field(init=False)
    refs: np.ndarray = field(init=False)
    others: np.ndarray = field(init=False)  # owners of pages that are none of the tables
    free: list[int] = field(init=False)
    spare: int = 0  # pages that were asked for in vain, for copies

    def __post_init__(self) -> None:
        self.pages = torch.from_numpy(self.rng.standard_normal((NUM_PAGES, LAYOUT.page_elems)).astype(np.float32))
        self.refs, self.others = np.zeros((2, NUM_PAGES), np.int32)
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

    def share(self, table: PageTable) -> None:
        """Pages here and there, so that of a run all may have others, or some, or none."""
        pages = table.pages()
        of_runs = np.repeat(self.rng.random(len(pages) // table.run), table.run) < 0.5
        self.others[pages[of_runs & (self.rng.random(len(pages)) < 0.7)]] += self.rng.integers(1, 3)
        self.refs[pages] += self.others[pages]

    def fork(self, table: PageTable) -> PageTable:
        twin = twin_of(table)
        self.refs[table.pages()] += 1
        return twin

    def owned(self, tables: list[PageTable]) -> np.ndarray:
        """How many of these tables hold each page."""
        return sum((np.bincount(table.pages(), minlength=NUM_PAGES) for table in tables), np.zeros(NUM_PAGES, np.int64))

    def run(self, acts: list[Any], run: int = 1) -> list[int]:
        """Judges and does; copies get pages of their own, and one more than they need. Returns those that they took."""
        theirs, owners = self.pages[self.others > 0].clone(), self.refs.copy()
        choose_acts(self.pages, LAYOUT, self.refs, acts)
        assert (self.refs == owners).all(), "what is judged is not done yet"
        needed = num_copies(self.refs, acts)
        fresh = np.array([self.free.pop() * ROWS for _ in range(needed + 1)], np.int32)
        for base in fresh:
            self.refs[base : base + run] = 1
        taken = run_acts(self.pages, LAYOUT, self.refs, acts, fresh)
        assert taken <= needed
        self.spare = needed - taken
        for base in fresh[taken:]:
            self.refs[base : base + run] = 0
        assert [act.error for act in acts] == [""] * len(acts)
        assert torch.equal(self.pages[self.others > 0], theirs), "a page that others hold was written"
        return fresh[:taken].tolist()

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
    """But for pages that were copied."""
    assert (one.lens == other.lens).all()
    assert (one.counts == other.counts).all()
    assert not one.bases[np.arange(one.bases.shape[1]) >= one.counts[:, None]].any()
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
            self.options.pop("unvoted")
            return None
        scores = first.masked_fill(second == 0, 0.0) if self.by is By.WANTED else first
        if self.by is By.COUNTED:
            scores = second + first / (first.amax(-1, keepdim=True) + 1.0)
        return without_window(scores, torch.from_numpy(self.twin.lens).view(LAYERS, HEADS), self.options.pop("unvoted"))


def ranked(world: World, data: st.DataObject, table: PageTable) -> tuple[Ranked, Tensor, Tensor]:
    by, lens = data.draw(st.sampled_from([By.AGE, By.MASS, By.RECEIVED, By.COUNTED, By.WANTED])), table.lens.tolist()
    first, second = world.remembered(table), world.remembered(table, 3)
    budget = data.draw(st.integers(1, 20))
    options = {
        "sinks": data.draw(st.integers(0, 3)), "recent": data.draw(st.integers(1, 5)),
        "least": data.draw(st.sampled_from([-float("inf"), 1e-30, 0.5])), "pool": data.draw(st.sampled_from([1, 3, 5])),
        "unvoted": data.draw(st.sampled_from([0, 0, 4])),
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
    tables = [world.table(data.draw(LENS), data.draw(st.integers(0, 1))) for _ in range(data.draw(st.integers(1, 3)))]
    if data.draw(st.booleans()):
        for table in tables:
            world.share(table)
    forked = data.draw(st.booleans())
    if forked:
        tables.append(world.fork(tables[-1]))
    made = [ranked(world, data, table) for table in tables]
    before = world.pages.clone()
    world.run([one.act for one, _, _ in made])
    assert (world.refs == world.others + world.owned(tables)).all()
    gone = {page for one, _, _ in made for page in one.twin.pages().tolist() if not world.refs[page]}
    assert sorted(gone) == sorted(page for one, _, _ in made for page in one.act.freed)
    for one, first, second in made:
        pages = before.clone()
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
        assert one.act.num_cut == len(freed)
        owned = all(
            world.refs[one.table.bases[row, length // SIZE]] == 1
            for row, length in enumerate(one.table.lens)
            if length % SIZE
        )
        assert owned if one.act.tail_owned else forked or not owned  # a fork's later act may have let go of it
        assert torch.equal(first, moved)
        assert not second.any()
        for row in range(ROWS):
            for slot in range(one.table.lens[row]):
                page, at = one.table.bases[row, slot // SIZE], slot % SIZE
                then = one.twin.bases[row, slot // SIZE]
                assert torch.equal(LAYOUT.k(world.pages)[page, at], LAYOUT.k(pages)[then, at])
                assert torch.equal(LAYOUT.v(world.pages)[page, at], LAYOUT.v(pages)[then, at])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(2, 40), st.integers(0, 1), st.data())
def test_a_window_that_moves_on_keeps_the_ends_and_writes_few_of_them(
    seed: int, held: int, reserved: int, data: st.DataObject
) -> None:
    world = World(np.random.default_rng(seed))
    table = world.table([held], reserved, Granularity.SEQUENCE)
    if data.draw(st.booleans()):
        world.share(table)
    sinks = data.draw(st.integers(0, held - 2))
    start = data.draw(st.integers(sinks + 1, held))
    before, had = world.pages.clone(), table.bases[0, : table.counts[0]].copy()
    kept = [*range(sinks), *range(start, held)]
    act = new_act(table.bases, table.counts, table.lens, table.run)
    act.slide(sinks, start)
    copies = world.run([act], table.run)
    assert table.lens[0] == len(kept)
    assert act.dropped == (start - sinks) * ROWS
    assert act.room == -len(kept) % SIZE
    bases = table.bases[0, : table.counts[0]].tolist()
    assert set(bases) <= {*had.tolist(), *copies}
    assert not table.bases[0, table.counts[0] :].any()
    assert (world.refs == world.others + world.owned([table])).all()
    freed = [page for base in act.freed for page in range(base, base + ROWS)] + act.freed_pages
    assert sorted(freed) == [page for base in sorted(had) for page in range(base, base + ROWS) if not world.refs[page]]
    assert act.num_cut == len(had) - len(bases)
    last = bases[-1] if len(kept) % SIZE else None
    assert act.tail_owned is (last is None or not (world.refs[last : last + ROWS] > 1).any())
    for slot, source in enumerate(kept):
        for row in range(ROWS):
            now, then = bases[slot // SIZE] + row, had[source // SIZE] + row
            assert torch.equal(LAYOUT.k(world.pages)[now, slot % SIZE], LAYOUT.k(before)[then, source % SIZE])
            assert torch.equal(LAYOUT.v(world.pages)[now, slot % SIZE], LAYOUT.v(before)[then, source % SIZE])
    if (start - sinks) % SIZE == 0 and -(-sinks // SIZE) * SIZE < len(kept):
        changed = (world.pages != before).any(1).sum()
        assert len(copies) <= (sinks % SIZE > 0)
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
    act.rank(int(By.HASHES), place(held), (0, 0), 0, budget, 1, 2, -float("inf"), 1, 0, 0, 0, [place(held)], [])
    act.hash(planes.data_ptr(), 7, queries.data_ptr(), 3, unhashed)
    world.run([act])
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


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 30), LENS, st.data())
def test_those_that_may_vote_choose_for_all_heads_of_a_layer(seed: int, lens: list[int], data: st.DataObject) -> None:
    world, group, places = World(np.random.default_rng(seed)), 3, data.draw(st.integers(1, 6))
    table, num_seen, most = world.table(lens, 0), 40, max(lens)
    twin, pages = twin_of(table), world.pages.clone()
    queries = torch.from_numpy(world.rng.standard_normal((LAYERS, places, HEADS * group, DIMS[0])).astype(np.float32))
    num = data.draw(st.integers(1, HEADS * group))
    voters = torch.from_numpy(np.stack([world.rng.permutation(HEADS * group)[:num] for _ in range(LAYERS)]))
    held = torch.from_numpy(twin.lens).long().view(LAYERS, HEADS)
    first, at = num_seen - held[..., None], torch.arange(most)
    positions = (first + at).clamp(max=num_seen - 1)

    def read(layer: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(twin.bases[layer * HEADS : (layer + 1) * HEADS])
        return read_slots(pages, LAYOUT, rows, torch.zeros(HEADS, dtype=torch.int64), most)

    width = min(places, num_seen)
    shown = Inputs(num_seen, num_seen, 0, held, newest=queries[:, -width:], scale=0.3, read=read, positions=positions)
    scores = shown.received_from(voters)[:, None].expand(LAYERS, HEADS, most)
    act, numbered = new_act(table.bases, table.counts, table.lens, 1), torch.zeros(LAYERS, HEADS, most)
    act.rank(int(By.VOTED), (0, 0), (0, 0), 0, 6, 0, 2, -float("inf"), 3, 2, 0, 0, [place(numbered)], [])
    around = queries.roll(num_seen, 1).contiguous()  # token t at t % places
    look(act, around, HEADS, num_seen, 0.3, 0.0, place(numbered), num_seen)
    act.vote(voters.data_ptr(), num)
    world.run([act])
    left = torch.zeros(ROWS, dtype=torch.int32)
    moved = positions.float().masked_fill(at >= held[..., None], 0.0).contiguous()
    evict(
        pages, LAYOUT, torch.from_numpy(twin.bases), held.flatten(), torch.full((ROWS,), 6), most, left,
        scores=without_window(scores, held, 2), recent=2, pool=3, values=[moved],
    )  # fmt: skip
    assert left.tolist() == table.lens.tolist()
    assert torch.equal(numbered, moved)


def test_slots_go_on_in_one_of_them() -> None:
    world = World(np.random.default_rng(4))
    table = world.table([22, 14, 14, 22], 0)
    pairs, twin, pages = torch.tensor([1, 2]), twin_of(table), world.pages.clone()
    act = new_act(table.bases, table.counts, table.lens, 1)
    budgets = torch.tensor([99, 9, 9, 99])
    act.rank(int(By.AGE), (0, 0), (0, 0), budgets.data_ptr(), 0, 3, 6, -float("inf"), 1, 0, 0, 0, [], [])
    act.blend(pairs.data_ptr(), 2, 2, 6, 5 / 10, 1 / 10)
    world.run([act])
    rows, first = torch.from_numpy(twin.bases), torch.tensor([2, 2])
    weights = torch.full((2, 6), 0.1)
    weights[:, 0] = 0.5
    k, v = weigh_slots(pages, LAYOUT, rows[pairs], first, weights)
    kv_write(k[:, None], v[:, None], pages, LAYOUT, rows[pairs, :1], torch.full((2, 1), 2, dtype=torch.int32))
    left = torch.zeros(ROWS, dtype=torch.int32)
    evict(pages, LAYOUT, rows, torch.from_numpy(twin.lens).long(), budgets, 22, left, sinks=3, recent=6)
    assert left.tolist() == table.lens.tolist() == [22, 9, 9, 22]
    assert torch.equal(world.pages, pages)


@pytest.mark.parametrize("harm", ["page", "owner", "length", "slots", "no copy", "not chosen"])
def test_an_act_that_cannot_be_touches_nothing_and_the_others_are_done(harm: str) -> None:
    world = World(np.random.default_rng(1))
    right, wrong, last = tables = [world.table([9], 0, Granularity.SEQUENCE) for _ in range(3)]
    acts = [new_act(table.bases, table.counts, table.lens, table.run) for table in tables]
    for act in acts:
        act.slide(1, 5)
    if harm == "page":
        wrong.bases[0, 2] = NUM_PAGES
    if harm == "owner":
        world.refs[wrong.bases[0, 1] + 1] = 0
    if harm == "length":
        wrong.lens[0] = 13
    if harm == "slots":
        acts[1].slide(1, 14)
    if harm == "no copy":
        world.refs[wrong.bases[0, 0]] = 2
    pages, refs, bases = world.pages.clone(), world.refs.copy(), wrong.bases.copy()
    choose_acts(world.pages, LAYOUT, world.refs, acts[::2] if harm == "not chosen" else acts)
    assert bool(acts[1].error) is (harm not in ("no copy", "not chosen"))
    run_acts(world.pages, LAYOUT, world.refs, acts)
    assert [bool(act.error) for act in acts] == [False, True, False]
    assert right.lens[0] == last.lens[0] == 5
    assert wrong.lens[0] == (13 if harm == "length" else 9)
    assert (wrong.bases == bases).all()
    if harm != "page":
        assert torch.equal(world.pages[wrong.pages()], pages[wrong.pages()])
        assert (world.refs[wrong.pages()] == refs[wrong.pages()]).all()


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("grain", [Granularity.SEQUENCE, Granularity.HEAD])
def test_of_what_forks_share_the_last_needs_no_copy(grain: Granularity, others: int) -> None:
    """Unless somebody else holds it, too."""
    world = World(np.random.default_rng(5))
    whole = grain is Granularity.SEQUENCE
    table = world.table([14] if whole else [14] * ROWS, 0, grain)
    tables = [table, world.fork(table), world.fork(table)]
    pages = table.pages()
    world.others[pages] = others
    world.refs[pages] += others
    acts = [new_act(one.bases, one.counts, one.lens, one.run) for one in tables]
    for act in acts:
        if whole:
            act.slide(1, 6)
        else:
            act.rank(int(By.AGE), (0, 0), (0, 0), 0, 9, 1, 8, -float("inf"), 1, 0, 0, 0, [], [])
    copied = world.run(acts, table.run)
    assert world.spare == 0, "asked for in vain"
    held = [set(one.pages().tolist()) for one in tables]
    assert not set.intersection(*held)
    per_act = -(-9 // SIZE) * (1 if whole else ROWS)
    assert len(copied) == (2 + others) * per_act
    assert (world.refs == world.owned(tables) + world.others)[pages].all()
