"""The engine's door: life of a sequence, sharing, copy-on-write, eviction, growth, refusals that change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from pagoda.core.errors import ConfigError, RequestError
from pagoda.core.types import Granularity
from pagoda.kv.compaction import RowPlan
from pagoda.kv.manager import KVManager
from pagoda.kv.pages import PagePool

from .world import World, fmt_of

S, L, H = Granularity.SEQUENCE, Granularity.LAYER, Granularity.HEAD
GRAINS = [S, L, H]
FMT = fmt_of(2, 2, page_size=4)
PROMPT = list(range(10, 20))


def world_of(num_blocks: int = 16, **options: object) -> World:
    return World(FMT, num_blocks, **options)


def run(world: World, tokens: list[int], grain: Granularity = S, **options: object) -> int:
    """Admits and computes a whole prompt."""
    seq_id = world.admit(tokens, grain, **options)
    world.step({seq_id: tokens[len(world.seqs[seq_id].tokens) :]})
    world.check()
    return seq_id


def cached(world: World, seq_id: int) -> int:
    return world.manager.table(seq_id).num_tokens


@pytest.mark.parametrize("grain", GRAINS)
def test_a_prompt_is_shared_and_one_token_always_computed(grain: Granularity) -> None:
    world = world_of()
    first = run(world, PROMPT, grain)
    second = world.admit(PROMPT, grain)
    assert cached(world, second) == 8
    third = world.admit(PROMPT[:8], grain)
    assert cached(world, third) == 4, "of two full pages one is taken, or nothing would be left to compute"
    assert world.manager.held_bytes(second) == 2 * FMT.block_bytes
    assert world.manager.held_bytes(first) == 3 * FMT.block_bytes
    world.check()


def test_the_recomputed_last_page_becomes_the_shared_one() -> None:
    world = world_of()
    run(world, PROMPT[:8])
    used = world.pool.num_used_pages
    run(world, PROMPT[:8])
    assert world.pool.num_used_pages == used, "the copy that was computed again is given up for the cached page"


def test_prompts_computed_side_by_side_end_up_shared() -> None:
    world = world_of()
    one, two = world.admit(PROMPT, S), world.admit(PROMPT, H)
    world.step({one: PROMPT, two: PROMPT})
    world.check()
    assert world.pool.num_used_pages == 4 * FMT.pages_per_block, "two shared pages and a tail each"


def test_generated_tokens_are_found_again_after_preemption() -> None:
    world = world_of()
    seq_id = run(world, PROMPT)
    for token in range(7):
        world.step({seq_id: [token]})
    tokens = world.seqs[seq_id].tokens
    world.release(seq_id)
    again = world.admit([*tokens, 99], S)
    assert cached(world, again) == 16
    world.check()


def test_without_prefix_nothing_is_read_nor_left() -> None:
    world = world_of()
    run(world, PROMPT)
    alone = run(world, PROMPT, use_prefix=False)
    assert world.manager.stats().num_cached_entries == 2
    world.truncate(alone, 0)
    world.release(alone)
    off = world_of(use_prefix=False)
    assert cached(off, run(off, PROMPT)) == 10
    assert off.manager.clear_prefix() == 0
    assert off.manager.pin(PROMPT) is None
    assert off.manager.unpin(1) is False


def test_tenants_do_not_share() -> None:
    world = world_of()
    run(world, PROMPT, salt="alice")
    assert cached(world, world.admit(PROMPT, S, "bob")) == 0
    assert cached(world, world.admit(PROMPT, S, "alice")) == 8
    assert world.manager.admit(99, PROMPT, salt="alice", adapter="lora") == 0


def test_a_coarse_entry_serves_finer_tables() -> None:
    world = world_of()
    run(world, PROMPT, S)
    for grain in (L, H):
        assert cached(world, run(world, PROMPT, grain)) == 10
    assert world.manager.stats().prefix.num_hit_pages == 4


def test_a_finer_entry_is_a_miss_for_a_coarser_table_and_is_upgraded_by_it() -> None:
    world = world_of()
    run(world, PROMPT, H)
    coarse = world.admit(PROMPT, S)
    assert cached(world, coarse) == 0
    world.step({coarse: PROMPT})
    world.check()
    assert cached(world, world.admit(PROMPT, S)) == 8
    assert cached(world, world.admit(PROMPT, H)) == 8
    world.check()


def test_a_chain_of_coarse_and_fine_entries_is_adopted_whole() -> None:
    world = world_of()
    first = run(world, PROMPT[:5], S)
    world.release(first)
    run(world, [*PROMPT, 1, 2, 3], H)
    assert cached(world, world.admit([*PROMPT, 1, 2, 3], H)) == 12
    assert cached(world, world.admit([*PROMPT, 1, 2, 3], S)) == 4
    world.check()


@pytest.mark.parametrize("grain", GRAINS)
def test_the_first_writer_copies_and_the_last_owner_need_not(grain: Granularity) -> None:
    world = world_of()
    parent = run(world, PROMPT, grain)
    child, other = world.fork(parent), world.fork(parent)
    copied = world.manager.stats().num_copied_pages
    world.step({parent: [1]})
    world.step({child: [2]})
    world.step({other: [3]})
    world.check()
    assert world.manager.stats().num_copied_pages - copied == 2 * FMT.pages_per_block


def test_a_fork_at_a_page_boundary_copies_nothing() -> None:
    world = world_of()
    parent = run(world, PROMPT[:8])
    child = world.fork(parent)
    world.step({parent: [1], child: [2]})
    world.check()
    assert world.manager.stats().num_copied_pages == 0


def test_a_copy_of_a_page_that_is_itself_to_be_copied_reads_the_original() -> None:
    world = world_of(use_prefix=False)
    parent = run(world, PROMPT[:6])
    child = world.fork(parent)
    assert world.reserve(child, 1)
    grandchild = world.fork(child)
    assert world.reserve(grandchild, 1)
    sources = set(world.manager._copies.values())
    assert sources == set(world.manager.table(parent).pages().tolist()[4:8])
    world.check()
    world.step({child: [1], grandchild: [2], parent: [3]})
    world.check()


def test_copies_for_a_sequence_that_left_are_dropped() -> None:
    world = world_of()
    parent = run(world, PROMPT)
    child = world.fork(parent)
    assert world.reserve(child, 1)
    world.release(child)
    assert world.manager.take_copies() == []


@pytest.mark.parametrize("grain", GRAINS)
def test_rollback_into_a_cached_page_copies_it(grain: Granularity) -> None:
    world = world_of()
    seq_id = run(world, PROMPT, grain)
    world.truncate(seq_id, 6)
    world.check()
    world.step({seq_id: [1, 2, 3]})
    world.check()
    assert world.manager.stats().num_copied_pages == FMT.pages_per_block
    assert cached(world, world.admit(PROMPT, grain)) == 8, "the old text is still known"
    assert cached(world, world.admit([*PROMPT[:6], 1, 2, 3, 4], grain)) == 8, "and so is the new one"


def test_rollback_over_several_pages_and_to_the_start() -> None:
    world = world_of()
    seq_id = run(world, [*PROMPT, *PROMPT])
    for num in (17, 16, 3, 0):
        world.truncate(seq_id, num)
        world.check()
    assert world.manager.table(seq_id).num_pages == 0
    world.step({seq_id: PROMPT})
    world.check()


def test_rollback_gives_reserved_pages_back() -> None:
    world = world_of()
    seq_id = run(world, PROMPT)
    assert world.reserve(seq_id, 20)
    world.truncate(seq_id, 10)
    assert world.manager.held_bytes(seq_id) == 3 * FMT.block_bytes
    world.check()


# Room ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grain", GRAINS)
def test_what_does_not_fit_changes_nothing(grain: Granularity) -> None:
    world = world_of(4)
    seq_id = run(world, PROMPT, grain)
    other = run(world, [1], grain)
    assert not world.reserve(seq_id, 7)
    world.check()
    world.release(other)
    assert world.reserve(seq_id, 6)


def test_unused_prefixes_go_when_pages_are_needed() -> None:
    world = world_of(4)
    world.release(run(world, PROMPT))
    assert world.manager.available_blocks() == 4
    other = world.admit(list(range(50, 66)), S)
    assert world.reserve(other, 12)
    assert world.manager.stats().prefix.num_evicted_pages == 1
    assert not world.reserve(other, 17)
    assert world.manager.stats().prefix.num_evicted_pages == 1, "nothing is given up in vain"
    assert world.reserve(other, 16)
    world.check()


def test_pinned_prefixes_stay() -> None:
    world = world_of(4)
    world.release(run(world, PROMPT))
    world.pin(PROMPT, "", None)
    assert world.manager.available_blocks() == 2
    other = world.admit([1], S)
    assert not world.reserve(other, 12)
    assert world.manager.clear_prefix() == 0
    world.unpin(0)
    assert world.reserve(other, 12)
    world.check()
    assert world.manager.pin([77] * 8) is None


def test_the_pool_grows_before_prefixes_go() -> None:
    world = world_of(3, max_blocks=8)
    world.release(run(world, PROMPT))
    world.ledger_blocks = 2
    assert world.manager.available_blocks() == 8
    assert world.manager.capacity_tokens() == 32
    other = world.admit([1], S)
    assert world.reserve(other, 12)
    assert (world.pool.num_blocks, world.ledger_blocks) == (5, 0)
    assert world.manager.stats().num_cached_entries == 2
    assert world.reserve(other, 20)
    assert world.manager.stats().num_cached_entries == 0
    world.check()


def test_capacity_without_growth_is_the_pool() -> None:
    pool = PagePool(FMT, 3, max_blocks=9)
    manager = KVManager(FMT, pool, None)
    assert (manager.capacity_tokens(), manager.available_blocks(), manager.blocks_needed(9)) == (12, 3, 3)


def test_shrinking_gives_prefixes_up() -> None:
    world = world_of(6)
    kept = run(world, [5] * 4)
    world.release(run(world, PROMPT))
    world.shrink(6)
    world.check()
    assert (world.pool.num_blocks, world.pool.num_free_blocks) == (1, 0)
    world.release(kept)


def test_whole_blocks_are_counted_where_pages_are_scattered() -> None:
    """Free pages in split blocks are no room for a run of a whole block; evicted entries are, once they fill one."""
    world = world_of(3)
    fine = run(world, PROMPT[:8], H)
    world.keep(fine, {(0, 0): [], (0, 1): [], (1, 0): []})
    world.check()
    coarse = world.admit([1], S)
    other = world.admit([1], S)
    assert world.reserve(coarse, 4)
    assert world.pool.num_free_blocks == 0
    assert not world.reserve(other, 8)
    world.check()
    world.release(fine)
    assert world.reserve(other, 8)
    world.check()
    assert world.manager.stats().num_refined_tables == 0


@pytest.mark.parametrize("grain", [S, L])
def test_single_pages_serve_where_no_whole_run_is_free(grain: Granularity) -> None:
    """Two sequences evicted different heads: one block's worth of pages is free, in no block whole."""
    world = world_of(4, use_prefix=False)
    for heads in ([(0, 0), (1, 0)], [(0, 1), (1, 1)]):
        seq_id = run(world, PROMPT[:8], H)
        world.keep(seq_id, {name: [0, 1] for name in heads})
    exact = world.admit(PROMPT, grain)
    assert (world.pool.num_free_blocks, world.manager.available_blocks()) == (0, 1)
    assert not world.reserve(exact, 5)
    assert world.manager.table(exact).granularity is grain
    world.step({exact: PROMPT[:3]})
    world.check()
    assert world.manager.table(exact).granularity is H
    assert world.manager.stats().num_refined_tables == 1
    assert world.pool.num_free_pages == 0
    assert world.keep(exact, {(None, None): [0, 2]}), "a policy still names all heads at once"
    world.check()


# Eviction of slots --------------------------------------------------------------------------------------------------


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


# Mistakes and counters ----------------------------------------------------------------------------------------------


def test_mistakes_of_the_caller() -> None:
    world = world_of()
    with pytest.raises(RequestError, match="without tokens"):
        world.manager.admit(1, [])
    seq_id = run(world, [1, 2, 3])
    with pytest.raises(AssertionError, match="admitted already"):
        world.manager.admit(seq_id, [1])
    with pytest.raises(AssertionError, match="admitted already"):
        world.manager.fork(seq_id, seq_id)
    with pytest.raises(AssertionError, match="more than it reserved"):
        world.manager.commit(seq_id, [1, 2])
    world.fork(seq_id)
    with pytest.raises(AssertionError, match="shared page"):
        world.manager.commit(seq_id, [1])


def test_a_colliding_hash_only_ends_the_offering() -> None:
    world = world_of()
    digests = iter(range(1000))
    hashes: dict[bytes, bytes] = {}
    good = lambda data: hashes.setdefault(data, str(next(digests)).encode())  # noqa: E731
    world.prefix._hash = lambda data: good(data) if len(hashes) < 2 else b"1"
    seq_id = run(world, PROMPT)
    world.step({seq_id: [1] * 8})
    world.check()
    assert world.manager.stats().num_cached_entries == 1


def test_stats_add_up() -> None:
    world = world_of(8, max_blocks=9)
    run(world, PROMPT)
    stats = world.manager.stats()
    assert (stats.num_blocks, stats.max_blocks, stats.num_free_blocks, stats.num_touched_blocks) == (8, 9, 5, 3)
    assert stats.num_pages == stats.num_free_pages + stats.num_used_pages == 32
    assert (stats.num_sequences, stats.num_cached_entries, stats.num_idle_entries) == (1, 2, 0)
    assert stats.used_bytes == stats.touched_bytes == 3 * FMT.block_bytes
    assert stats.capacity_bytes == 8 * FMT.block_bytes
