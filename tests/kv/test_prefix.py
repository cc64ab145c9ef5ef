"""The prefix cache: exact hits, who stays, who goes first, time."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pagoda.core.clock import FalseClock
from pagoda.core.types import Granularity
from pagoda.kv.audit import audit_pool, audit_prefix
from pagoda.kv.pages import PagePool
from pagoda.kv.prefix import Entry, PrefixCache, token_bytes

from .world import fmt_of

FMT = fmt_of(2, 2, page_size=2)


class Cache:
    """A cache over its own pool, filled by hand with chains of pages."""

    def __init__(self, num_blocks: int = 64, **options: object) -> None:
        self.clock = FalseClock()
        self.pool = PagePool(FMT, num_blocks)
        self.prefix = PrefixCache(self.pool, clock=self.clock.now, **options)
        self.holders: list[Entry] = []

    def add(self, tokens: list[int], salt: str = "") -> Entry:
        """Inserts the full pages of these tokens, as a sequence does that ends here and now."""
        node = self.prefix.root(salt)
        self.prefix.hold(node)
        for start in range(0, len(tokens) - 1, 2):
            page = token_bytes(tokens[start : start + 2])
            child = self.prefix.child(node, page)
            if child is None:
                base = self.pool.alloc(Granularity.SEQUENCE)
                child = self.prefix.insert(node, page, np.array([base], np.int32), 4)
                self.pool.unref(base, 4)
            self.prefix.advance(child)
            node = child
        self.prefix.release(node)
        return node

    def find(self, tokens: list[int], salt: str = "") -> int:
        return len(self.prefix.match(self.prefix.root(salt), token_bytes(tokens), len(tokens) // 2, 4))

    def evict(self) -> list[int] | None:
        """Tokens of the entry that goes first."""
        entry = self.prefix.detach_oldest()
        if entry is None:
            return None
        self.pool.unref_runs(entry.runs, entry.run)
        self.check()
        return np.frombuffer(entry.tokens, np.int32).tolist()

    def check(self) -> None:
        audit_pool(self.pool)
        audit_prefix(self.prefix, self.holders)


def test_the_longest_known_chain_is_found() -> None:
    cache = Cache()
    cache.add([1, 2, 3, 4, 5, 6])
    assert cache.find([1, 2, 3, 4, 9, 9]) == 2
    assert cache.find([1, 2, 3, 4, 5, 6, 7, 8]) == 3
    assert cache.find([3, 4, 5, 6]) == 0, "a page counts only after the pages before it"
    assert (cache.prefix.stats.num_hit_pages, cache.prefix.stats.num_missed_pages) == (5, 4)
    cache.check()


def test_tenants_adapters_models_and_formats_do_not_meet() -> None:
    cache = Cache()
    cache.add([1, 2, 3, 4], salt="alice")
    assert cache.find([1, 2, 3, 4], salt="bob") == cache.find([1, 2, 3, 4]) == 0
    assert cache.find([1, 2, 3, 4], salt="alice") == 2
    root = cache.prefix.root
    keys = {root().key, root("a").key, root("", "a").key, PrefixCache(cache.pool, fingerprint="m").root().key}
    assert len(keys | {PrefixCache(PagePool(fmt_of(2, 2, 4), 1)).root().key}) == 5


def test_hits_do_not_trust_the_hash() -> None:
    """With a hash that always collides nothing wrong is found, and the second text is simply not kept."""
    cache = Cache(hasher=lambda data: b"same")
    root = cache.prefix.root()
    cache.prefix.hold(root)
    runs = np.array([cache.pool.alloc(Granularity.SEQUENCE)], np.int32)
    entry = cache.prefix.insert(root, token_bytes([1, 2]), runs, 4)
    assert cache.find([1, 2]) == 1
    assert cache.find([7, 8]) == 0
    assert cache.find([1, 2, 1, 2]) == 1, "same tokens, same key, but after another page"
    assert cache.prefix.insert(entry, token_bytes([3, 4]), runs, 4) is None


def test_least_recently_used_leaf_goes_first() -> None:
    cache = Cache()
    cache.add([1, 2, 3, 4])
    cache.add([1, 2, 5, 6])
    cache.add([7, 8])
    cache.find([1, 2, 3, 4])
    assert [cache.evict() for _ in range(5)] == [[5, 6], [7, 8], [3, 4], [1, 2], None]
    assert cache.pool.num_used_pages == 0
    assert not cache.prefix._roots, "namespaces without entries are forgotten"


def test_a_chain_goes_from_its_end_before_newer_chains() -> None:
    cache = Cache()
    cache.add([1, 2, 3, 4, 5, 6])
    cache.add([7, 8, 9, 9])
    assert [cache.evict() for _ in range(4)] == [[5, 6], [3, 4], [1, 2], [9, 9]]


def test_what_is_held_stays_with_its_ancestors() -> None:
    cache = Cache()
    end = cache.add([1, 2, 3, 4])
    cache.add([1, 2, 5, 6])
    cache.prefix.hold(end)
    cache.holders.append(end)
    cache.check()
    assert cache.prefix.num_idle == 1
    assert [cache.evict() for _ in range(2)] == [[5, 6], None]
    cache.prefix.release(cache.holders.pop())
    assert cache.prefix.clear() == 2
    assert cache.prefix.stats.num_evicted_pages == 2


def test_detach_can_be_undone() -> None:
    cache = Cache()
    cache.add([1, 2, 3, 4])
    gone = [cache.prefix.detach_oldest() for _ in range(2)]
    assert cache.find([1, 2, 3, 4]) == 0
    for entry in reversed(gone):
        cache.prefix.attach(entry)
    cache.check()
    assert cache.find([1, 2, 3, 4]) == 2
    assert cache.evict() == [3, 4]


def test_pins_hold_until_they_end_or_their_time_is_over() -> None:
    cache = Cache()
    first, second = cache.add([1, 2]), cache.add([3, 4])
    handles = [cache.prefix.pin(first), cache.prefix.pin(first, ttl=9.0), cache.prefix.pin(second, ttl=5.0)]
    cache.check()
    assert cache.prefix.clear() == 0
    cache.clock.advance(5.0)
    cache.prefix.expire()
    assert cache.prefix.clear() == 1
    assert not cache.prefix.unpin(handles[2]), "its time was over"
    assert cache.prefix.unpin(handles[0])
    assert cache.prefix.clear() == 0
    cache.clock.advance(4.0)
    cache.prefix.expire()
    assert cache.prefix.clear() == 1
    cache.check()


def test_idle_entries_end_with_their_time_to_live() -> None:
    cache = Cache(ttl=10.0)
    cache.add([1, 2, 3, 4])
    cache.clock.advance(6.0)
    cache.add([5, 6])
    assert cache.find([1, 2]) == 1, "used again: the whole chain is younger, as far as it was used"
    cache.clock.advance(6.0)
    assert cache.find([1, 2, 3, 4]) == 1
    assert cache.prefix.stats.num_expired_pages == 1
    cache.clock.advance(10.0)
    assert cache.prefix.expire() == 2
    assert cache.pool.num_used_pages == 0
    cache.check()


def test_finer_entries_are_no_hit_for_a_coarser_table_until_upgraded() -> None:
    cache = Cache()
    root = cache.prefix.root()
    cache.prefix.hold(root)
    cache.holders.append(root)
    fine = cache.pool.alloc_runs(1, 4)
    entry = cache.prefix.insert(root, token_bytes([1, 2]), fine, 1)
    cache.pool.unref_runs(fine, 1)
    assert cache.find([1, 2]) == 0
    coarse = np.array([cache.pool.alloc(Granularity.SEQUENCE)], np.int32)
    cache.prefix.upgrade(entry, coarse, 4)
    assert cache.find([1, 2]) == 1
    assert (cache.pool.refs[fine] == 0).all()
    cache.check()


def test_the_heap_does_not_grow_with_use() -> None:
    cache = Cache()
    cache.add([1, 2])
    for _ in range(500):
        cache.find([1, 2])
    assert len(cache.prefix._heap) < 100
    cache.check()
    assert cache.evict() == [1, 2]


@pytest.mark.parametrize("seed", range(3))
def test_eviction_order_is_that_of_a_plain_lru(seed: int) -> None:
    """Independent texts of one page: the heap with lazy deletion against a list."""
    rng = random.Random(seed)
    cache, order = Cache(), []
    for _ in range(300):
        text = rng.randrange(12)
        if rng.random() < 0.3 and order:
            assert cache.evict() == [order.pop(0)] * 2
            continue
        cache.add([text, text])
        order = [other for other in order if other != text] + [text]
    cache.check()
