"""The page pool: three levels, merging, bulk paths, size at run time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pagoda.core.errors import ConfigError
from pagoda.core.types import Granularity, KVFormat
from pagoda.kv.audit import audit_pool
from pagoda.kv.pages import PagePool

from .world import fmt_of

S, L, H = Granularity.SEQUENCE, Granularity.LAYER, Granularity.HEAD


def pool_of(num_blocks: int = 4, *, max_blocks: int | None = None, layers: int = 2, heads: int = 3) -> PagePool:
    return PagePool(fmt_of(layers, heads), num_blocks, max_blocks=max_blocks)


def test_runs_of_each_size_start_at_their_multiples() -> None:
    pool = pool_of()
    bases = {grain: pool.alloc(grain) for grain in (S, L, H)}
    assert bases[S] % 6 == bases[L] % 3 == 0
    audit_pool(pool)
    assert pool.num_used_pages == 6 + 3 + 1
    assert (pool.num_free_runs(6), pool.num_free_runs(3), pool.num_free_pages) == (2, 4, 14)


@pytest.mark.parametrize("grain", [S, L, H])
def test_all_that_is_free_can_be_taken_and_nothing_more(grain: Granularity) -> None:
    pool = pool_of()
    run = pool.fmt.pages_per_run(grain)
    taken = pool.alloc_runs(run, 24 // run)
    assert sorted(taken.tolist()) == list(range(0, 24, run))
    assert pool.alloc(grain) is None
    assert pool.alloc_runs(run, 1) is None
    pool.unref_runs(taken, run)
    audit_pool(pool)
    assert pool.num_free_blocks == 4


def test_single_pages_merge_into_groups_and_blocks() -> None:
    pool = pool_of(1)
    pages = [pool.alloc(H) for _ in range(6)]
    for num_left, page in zip(range(5, -1, -1), pages, strict=True):
        pool.unref(page, 1)
        audit_pool(pool)
        assert pool.num_used_pages == num_left
    assert pool.num_free_blocks == 1


def test_a_run_given_up_page_by_page_is_a_run_again() -> None:
    """A finer table that adopted a coarse run drops single pages of it."""
    pool = pool_of(2)
    block = pool.alloc(S)
    pool.ref(block, 6)
    pool.unref_runs(np.arange(block + 1, block + 5, dtype=np.int32), 1)
    pool.unref(block, 6)
    audit_pool(pool)
    assert pool.num_free_pages == 6 + 4
    assert pool.num_free_runs(3) == 2, "no group is whole: each still has a page in use"
    pool.unref_runs(np.array([block, block + 5], np.int32), 1)
    audit_pool(pool)
    assert pool.num_free_blocks == 2


def test_leftovers_go_before_whole_blocks_are_split() -> None:
    pool = pool_of(3)
    pool.alloc(H)
    assert pool.alloc_runs(1, 5) is not None
    assert pool.num_free_blocks == 2
    pool.alloc(L)
    pool.alloc(L)
    assert pool.num_free_blocks == 1
    audit_pool(pool)


def test_bulk_of_pages_crosses_all_three_levels() -> None:
    pool = pool_of(5)
    pool.alloc(H)
    pages = pool.alloc_runs(1, 20)
    assert len(set(pages.tolist())) == 20
    assert (pool.refs[pages] == 1).all()
    audit_pool(pool)
    pool.unref_runs(pages[3:17], 1)
    audit_pool(pool)


def test_touched_blocks_are_used_again_first() -> None:
    pool = pool_of(4)
    first = pool.alloc(S)
    pool.unref(first, 6)
    assert pool.alloc(S) == first
    assert pool.num_touched_blocks == 1
    pool.unref(first, 6)
    assert pool.give_back(5) == [0]
    assert (pool.num_touched_blocks, pool.num_free_blocks) == (0, 4)
    audit_pool(pool)
    assert pool.alloc(S) == first, "blocks given back are used before those never used"
    assert pool.num_touched_blocks == 1


def test_shrink_and_grow() -> None:
    pool = pool_of(4, max_blocks=6)
    used = pool.alloc_runs(6, 2)
    pool.unref_runs(used[:1], 6)
    assert pool.shrink(2) == [0, 3], "first what may be resident, then what was never used"
    audit_pool(pool)
    assert (pool.num_blocks, pool.num_free_blocks, pool.num_touched_blocks) == (2, 1, 1)
    assert pool.shrink(5) == [2]
    assert pool.alloc(S) is None
    assert pool.grow(1) == 1
    audit_pool(pool)
    assert pool.alloc(S) == 0
    assert pool.grow(100) == 4
    audit_pool(pool)
    assert (pool.num_blocks, pool.num_free_blocks) == (6, 4)
    assert pool.grow(1) == 0


def test_blocks_given_back_leave_before_the_never_used() -> None:
    pool = pool_of(3)
    pool.unref(pool.alloc(S), 6)
    pool.give_back(1)
    assert pool.shrink(1) == [0]
    audit_pool(pool)
    assert (pool.num_blocks, pool.num_touched_blocks) == (2, 0)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (1, 4), (4, 1)])
def test_levels_that_coincide(layers: int, heads: int) -> None:
    pool = pool_of(3, layers=layers, heads=heads)
    for grain in (S, L, H):
        run = pool.fmt.pages_per_run(grain)
        runs = pool.alloc_runs(run, pool.num_free_runs(run))
        assert pool.num_free_pages == 0
        audit_pool(pool)
        for base in runs.tolist():
            pool.unref(base, run)
        audit_pool(pool)
        assert pool.num_free_blocks == 3


def test_sharing_is_seen_by_run() -> None:
    pool = pool_of()
    runs = pool.alloc_runs(3, 2)
    pool.ref(int(runs[1]) + 2, 1)
    assert pool.shared(runs, 3).tolist() == [False, True]


def test_taking_away_an_owner_that_is_not_there_is_our_mistake() -> None:
    pool = pool_of()
    with pytest.raises(AssertionError, match="no owner"):
        pool.unref(0, 1)


def test_nothing_to_take_away() -> None:
    pool = pool_of()
    pool.unref_runs(np.zeros(0, np.int32), 1)
    assert len(pool.alloc_runs(1, 0)) == 0
    audit_pool(pool)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="accepted: 0 … 2"):
        pool_of(3, max_blocks=2)
    with pytest.raises(ConfigError, match="beyond int32; accepted: up to 357913941 blocks"):
        pool_of(0, max_blocks=2**29)


def test_operations_do_not_slow_down_with_the_pool() -> None:
    """No scans: a pool of 260,000 pages, all split, hands out and takes back a page in microseconds."""
    pool = PagePool(KVFormat(4, 8, 8, 8, 16, "float32"), 8192)
    pages = pool.alloc_runs(1, 8192 * 32)
    pool.unref_runs(pages[::2].copy(), 1)
    started = time.process_time()
    for _ in range(1000):
        pool.unref(pool.alloc(H), 1)
    assert time.process_time() - started < 1.0
