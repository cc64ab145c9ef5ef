"""Where pages come from when they run out: refusals that change nothing, growth, prefixes, single pages."""

from __future__ import annotations

import pytest

from pagoda.core.types import Granularity
from pagoda.kv.manager import KVManager
from pagoda.kv.pages import PagePool

from .manager_world import FMT, GRAINS, PROMPT, H, L, S, run, world_of


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
