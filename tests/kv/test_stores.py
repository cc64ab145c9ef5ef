"""Several formats in one lease: what gives way, and what must not be lost when it does."""

from __future__ import annotations

import torch

from pagoda.budget.ledger import Ledger
from pagoda.core.types import KVFormat
from pagoda.kv.device_region import EDGE_BYTES
from pagoda.kv.pages import PagePool
from pagoda.kv.policies.base import Stored
from pagoda.kv.prefix import PrefixCache
from pagoda.kv.stores import Stores

from .false_driver import FalseDriver

FMT = KVFormat(2, 2, 8, 8, 16, "float32")


def make_stores(num_blocks: int = 8) -> Stores:
    ledger = Ledger(64 << 20)
    stores = Stores(
        FMT, num_blocks * FMT.block_bytes, ledger.lease("kv", 0, "pages"), ledger.lease("policies", 0, "states"), "cpu",
        lambda pool: PrefixCache(pool), address_bytes=4 * num_blocks * FMT.block_bytes,
    )  # fmt: skip
    assert isinstance(stores.default.manager.pool, PagePool)
    return stores


def test_a_noted_copy_is_made_before_its_source_is_given_back() -> None:
    """A fork's tail page is to be copied, its parent goes, and its block is asked for: the fork still has the bytes."""
    stores = make_stores()
    manager, storage = stores.default.manager, stores.default.storage
    manager.admit(1, list(range(8)))
    assert manager.reserve(1, 8)
    manager.commit(1, list(range(8)))
    source = manager.table(1).runs()
    per_block = FMT.pages_per_block
    storage.pages[int(source[0]) : int(source[0]) + per_block] = 7.0
    manager.fork(1, 2)
    assert manager.reserve(2, 1)
    manager.release(1)
    assert stores.give_back(8 * FMT.block_bytes) > 0
    stores.default.run_copies()
    target = int(manager.table(2).runs()[0])
    assert target != int(source[0])
    assert torch.equal(storage.pages[target : target + per_block], torch.full((per_block, 256), 7.0))
    stores.audit()
    stores.close()


def test_the_total_moves_both_ways() -> None:
    stores = make_stores(4)
    manager = stores.default.manager
    manager.admit(1, list(range(100)))
    assert not manager.reserve(1, 100)
    stores.set_total(8 * FMT.block_bytes)
    assert manager.reserve(1, 100)
    manager.commit(1, list(range(100)))
    stores.set_total(2 * FMT.block_bytes)
    assert stores.excess_bytes == 5 * FMT.block_bytes
    manager.release(1)
    stores.set_total(2 * FMT.block_bytes)
    assert stores.excess_bytes == 0
    assert manager.pool.num_blocks == 2
    stores.audit()
    stores.close()


def test_the_slack_of_huge_pages_is_leased_with_the_first_block_and_goes_with_the_last() -> None:
    fmt = KVFormat(8, 8, 64, 64, 16, "float32")  # blocks of 512 KiB
    ledger = Ledger(1 << 30)
    lease = ledger.lease("kv", 0, "pages")
    stores = Stores(fmt, 256 << 20, lease, ledger.lease("policies", 0, "states"), "cpu", lambda pool: None)
    manager, slack = stores.default.manager, stores.default.storage.slack_bytes
    assert slack in (0, 2 << 20), "0: this system has no huge pages"
    assert lease.num_bytes == 0
    assert manager.capacity_tokens() == (256 * 2 - 4) * 16, "what a sequence may hold leaves room for it"
    manager.admit(1, list(range(20)))
    assert manager.reserve(1, 20)
    assert lease.num_bytes == 2 * fmt.block_bytes + slack
    stores.audit()
    manager.admit(2, list(range(9000)))
    assert manager.reserve(2, 506 * 16), "all of the capacity"
    assert lease.num_bytes == 508 * fmt.block_bytes + slack
    manager.release(2)
    stores.set_total(8 << 20)
    assert lease.num_bytes <= 8 << 20, "so small a budget has no slack"
    assert stores.default.storage.slack_bytes == 0
    manager.release(1)
    stores.give_back(256 << 20)
    assert lease.num_bytes == 0
    stores.audit()
    stores.close()


def test_on_a_device_formats_share_the_bytes_and_every_chunk_is_leased() -> None:
    """Blocks of 512 KiB and 144 KiB in chunks of 2 MiB: what one format gives up the other takes."""
    fmt = KVFormat(8, 8, 64, 64, 16, "float32")
    ledger = Ledger(28 << 20)
    lease, driver = ledger.lease("kv", 0, "pages"), FalseDriver()
    stores = Stores(
        fmt, 20 << 20, lease, ledger.lease("policies", 0, "states"), "cpu", lambda pool: None,
        address_bytes=64 << 20, driver=driver,
    )  # fmt: skip
    exact, small = stores.default, stores.of(Stored("int8"))
    assert lease.num_bytes == 0
    exact.manager.admit(1, list(range(5 * 16)))
    assert exact.manager.reserve(1, 5 * 16)
    assert lease.num_bytes == 6 << 20, "two chunks, and one that stands in for what is gone"
    small.manager.admit(2, list(range(16)))
    assert small.manager.reserve(2, 16)
    assert lease.num_bytes == 10 << 20
    exact.manager.admit(3, list(range(40 * 16)))
    assert not exact.manager.reserve(3, 40 * 16), "40 blocks are the whole total, and others have some of it"
    assert exact.manager.reserve(3, 34 * 16)
    assert lease.num_bytes == stores.touched_bytes == 26 << 20
    stores.audit()
    small.manager.admit(4, list(range(600)))
    assert not small.manager.reserve(4, 600)
    exact.manager.release(3)
    exact.manager.release(1)
    assert small.manager.reserve(4, 600)
    assert lease.num_bytes == sum(store.storage.resident_bytes() for store in stores) <= 28 << 20
    stores.audit()
    stores.set_total(8 << 20)
    assert lease.num_bytes <= (8 << 20) + 2 * EDGE_BYTES, "what each format holds beside"
    small.manager.release(2)
    small.manager.release(4)
    stores.give_back(64 << 20)
    assert lease.num_bytes == 0
    stores.audit()
    stores.close()
