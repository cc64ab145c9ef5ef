"""The engine's door: life of a sequence, sharing, copy-on-write, rollback, mistakes of the caller."""

from __future__ import annotations

import pytest

from pagoda.core.errors import RequestError
from pagoda.core.types import Granularity

from .manager_world import FMT, GRAINS, PROMPT, H, L, S, cached, run, world_of


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


@pytest.mark.parametrize("grain", GRAINS)
def test_pages_that_both_write_later_are_copied_too(grain: Granularity) -> None:
    """Ten slots in pages of four: of a codec that has encoded four, two pages are still to be written."""
    world = world_of(use_prefix=False)
    parent = run(world, PROMPT[:10], grain)
    child = world.fork(parent, open_from=4)
    world.step({parent: [1], child: [2]})
    world.check()
    assert world.manager.stats().num_copied_pages == 2 * FMT.pages_per_block
    mine, theirs = (world.manager.table(seq_id).bases for seq_id in (parent, child))
    assert (mine[:, 0] == theirs[:, 0]).all()
    assert not (mine[:, 1:3] == theirs[:, 1:3]).any()


def test_a_copy_of_a_page_that_is_itself_to_be_copied_reads_the_original() -> None:
    world = world_of(use_prefix=False)
    parent = run(world, PROMPT[:6])
    child = world.fork(parent)
    assert world.reserve(child, 1)
    grandchild = world.fork(child)
    assert world.reserve(grandchild, 1)
    sources = set(world.manager._reservations._copies.values())
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
