"""Slots leave: freed pages serve others, shared ones are copied, the prefix cache and rollback know of it."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.core.errors import ConfigError
from pagoda.core.types import Granularity
from pagoda.kv.compaction import RowPlan

from .manager_world import PROMPT, H, L, S, cached, run, world_of


def test_a_page_that_a_policy_frees_is_a_page_that_the_next_request_takes() -> None:
    """The pool is full; a policy drops tokens of some heads; exactly what it freed is enough for the next request."""
    world = world_of(4, use_prefix=False)
    victim = run(world, list(range(16)), H)
    other = world.admit([1, 2, 3], H)
    assert not world.reserve(other, 1)
    assert world.keep(victim, {(0, 0): [0, 5, 9, 15], (1, 1): [2]})
    world.check()
    assert world.pool.num_free_pages == 3 + 3
    assert world.reserve(other, 4)
    assert world.pool.num_free_pages == 2
    world.step({other: [1, 2, 3]})
    world.check()
    before = set(range(16))
    assert (
        set(world.manager.table(victim).pages().tolist()) | set(world.manager.table(other).pages().tolist()) <= before
    )


def test_eviction_copies_shared_pages_of_those_heads_only() -> None:
    world = world_of()
    seq_id = run(world, PROMPT, H)
    used = world.pool.num_used_pages
    assert world.keep(seq_id, {(0, 1): [0, 1, 2, 3, 5, 9]})
    world.check()
    assert world.pool.num_used_pages == used, "a fresh second page; its last page is free; the prefix keeps the old one"
    assert cached(world, world.admit(PROMPT, H)) == 8
    world.step({seq_id: [1, 2, 3]})
    world.check()


def test_slots_that_stay_in_a_shared_page_come_along() -> None:
    world = world_of()
    seq_id = run(world, PROMPT, H)
    assert world.keep(seq_id, {(1, 0): [0, 1, 3, 4, 5, 6, 7]})
    world.check()


@pytest.mark.parametrize("grain", [S, L, H])
def test_pages_that_move_up_whole_are_linked_not_written(grain: Granularity) -> None:
    """Slots 2 … 5 go: two slots of the second page fill the first, the pages after it stay as they are."""
    world = world_of(12)
    seq_id = run(world, list(range(18)), grain)
    twin = world.admit(list(range(18)), grain)
    world.step({twin: [16, 17]})
    before = world.manager.table(seq_id).bases.copy()
    name = {S: (None, None), L: (1, None), H: (1, 1)}[grain]
    table = world.manager.table(seq_id)
    kept = np.array([0, 1, *range(6, 18)], np.int32)
    plan = RowPlan.make(table, 0, kept)
    assert (plan.first_dirty, plan.num_dirty, plan.num_unlinked) == (0, 1, 1)
    other = table.copy()
    edits = other.edits
    plan.link(other)
    assert other.edits > edits, "who remembers its rows must look again"
    assert world.keep(seq_id, {name: kept.tolist()})
    world.check()
    row = 0 if grain is S else table.row(1, 1)
    assert table.bases[row, 1:4].tolist() == before[row, 2:5].tolist()
    world.step({seq_id: [7, 8, 9]})
    assert world.keep(seq_id, {name: [*range(4), *range(8, 17)]}), "nothing to write at all"
    world.check()
    world.step({twin: [3], seq_id: [4]})
    world.check()


def test_keeping_all_or_nothing() -> None:
    world = world_of()
    seq_id = run(world, PROMPT, H)
    assert world.keep(seq_id, {(0, 0): list(range(10))})
    assert world.manager.table(seq_id).pristine
    assert world.keep(seq_id, {(0, 0): []})
    assert not world.manager.table(seq_id).pristine
    assert len(world.manager.keep(seq_id, 0, 1, [0, 1])) == 0, "a prefix that stays moves nothing"
    world.seqs[seq_id].kept[0, 1] = world.seqs[seq_id].kept[0, 1][:2]
    world.check()
    world.step({seq_id: [1]})
    world.check()


@pytest.mark.parametrize(("grain", "name"), [(S, (None, None)), (L, (1, None))])
def test_coarser_rows_are_evicted_whole(grain: Granularity, name: tuple[int | None, int | None]) -> None:
    world = world_of()
    seq_id = run(world, PROMPT, grain)
    assert world.keep(seq_id, {name: [0, 4, 8, 9]})
    world.check()
    assert world.manager.stats().num_dropped_slots == 6 * world.manager.table(seq_id).run
    with pytest.raises(ConfigError, match=f"granularity '{grain}', whose rows cover more"):
        world.manager.keep(seq_id, 0, 0, [0])


def test_no_room_for_the_copies_changes_nothing() -> None:
    world = world_of(3, use_prefix=False)
    parent = run(world, PROMPT, H)
    world.fork(parent)
    assert not world.keep(parent, {(0, 0): [1, 2], (0, 1): [3]})
    world.check()
    assert world.manager.table(parent).pristine


def test_no_room_with_a_prefix_changes_nothing() -> None:
    world = world_of(3)
    parent = run(world, PROMPT, H)
    world.fork(parent)
    assert not world.keep(parent, {(0, 0): [1, 2], (0, 1): [3]})
    world.check()


def test_the_prefix_of_an_evicting_sequence_gives_way_in_a_full_pool() -> None:
    """All pages are shared between the sequence and the cache: the cache lets go, then the pages need no copy."""
    world = world_of(2)
    seq_id = run(world, PROMPT[:8], H)
    assert world.pool.num_free_pages == 0
    assert world.keep(seq_id, {(layer, head): [1, 6] for layer in range(2) for head in range(2)})
    world.check()
    assert world.pool.num_free_blocks == 1


def test_evicted_text_is_not_offered_to_the_prefix_cache() -> None:
    world = world_of()
    seq_id = run(world, PROMPT[:7], H)
    world.keep(seq_id, {(0, 0): [1]})
    entries = world.manager.stats().num_cached_entries
    world.step({seq_id: [1] * 9})
    world.check()
    assert world.manager.stats().num_cached_entries == entries


def test_rollback_after_eviction_takes_the_same_number_from_each_row() -> None:
    world = world_of()
    seq_id = run(world, PROMPT, H)
    world.keep(seq_id, {(0, 0): [1], (1, 1): [2, 3, 4, 5, 6]})
    world.step({seq_id: [1, 2, 3]})
    world.truncate(seq_id, 11)
    world.check()
    assert world.manager.table(seq_id).length(0, 0) == 2
    with pytest.raises(AssertionError, match="evicted at 10"):
        world.manager.truncate(seq_id, 9)


@pytest.mark.parametrize("slots", [[3, 2], [1, 1], [10], [-1, 2]])
def test_slots_that_are_not_there_are_refused(slots: list[int]) -> None:
    world = world_of()
    seq_id = run(world, PROMPT, H)
    with pytest.raises(ConfigError, match="accepted: 0 … 9, each once, ascending"):
        world.manager.keep(seq_id, 0, 1, slots)
    for name in ((0, 2), (2, 0), (-1, 0), (None, 1)):
        with pytest.raises(ConfigError, match="layers below 2, heads below 2 with their layer"):
            world.manager.keep(seq_id, *name, [1])
    with pytest.raises(ConfigError, match="given twice"):
        world.manager.keep_many(seq_id, {(0, None): [1], (0, 1): [1]})
    world.check()


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("who", ["grow", "needed"])
def test_room_that_raises_changes_nothing(monkeypatch: pytest.MonkeyPatch, who: str, many: bool) -> None:
    """Prefixes that were let go of are held again, once, and entries that were tried to do without are there."""
    world = world_of(6, max_blocks=8)
    world.release(run(world, list(range(50, 62)), S))  # idle prefixes
    parent = run(world, PROMPT, H)
    world.fork(parent)
    taken = world.admit([70], S)
    assert world.reserve(taken, 4 * (world.pool.num_free_pages // world.pool.fmt.pages_per_block))
    node, refs = world.manager._sequences[parent].node, world.pool.refs.copy()
    assert node is not None
    users, idle = node.users, world.prefix.num_idle
    asked = 0

    def raises(*args: object) -> int:
        nonlocal asked
        asked += 1
        if who == "grow" or asked > 3:
            raise MemoryError("no room")
        return 5

    def acts() -> None:
        if many or who == "needed":
            world.manager.room_for_copies([parent], 1, raises if who == "needed" else lambda: 9)
        else:
            world.manager.keep_many(parent, {(0, 0): np.array([1, 2], np.int32)})

    if who == "grow":
        monkeypatch.setattr(world.manager._room, "_grow", raises)
    with pytest.raises(MemoryError):
        acts()
    assert world.manager._sequences[parent].node is node
    assert (node.users, world.prefix.num_idle) == (users, idle)
    assert (world.pool.refs == refs).all()
    monkeypatch.undo()
    world.check()
