"""Bytes behind pages: lazy, given back for real, copies and moves, dtypes, closing."""

from __future__ import annotations

import gc
import mmap

import numpy as np
import pytest
import torch

from pagoda.core.errors import BudgetError, ConfigError
from pagoda.core.types import KVFormat
from pagoda.kv.codecs.base import with_dtype
from pagoda.kv.storage import PageStorage
from pagoda.kv.table import SlotMoves

from .false_driver import FalseDriver

MIB = 1 << 20
BIG = KVFormat(num_layers=4, num_kv_heads=4, k_dim=64, v_dim=64, page_size=16, dtype="bfloat16")  # blocks of 64 KiB
SMALL = KVFormat(num_layers=1, num_kv_heads=2, k_dim=2, v_dim=2, page_size=2, dtype="float32")


def resident(address: int, num_bytes: int) -> int:
    """Bytes of the range that take memory, from the page table itself. The process's RSS would count malloc's habits
    too: a comparison of 10 million elements left its 10 MiB of booleans in the arena on some runs.
    """
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // mmap.PAGESIZE * 8)
        entries = np.frombuffer(file.read(num_bytes // mmap.PAGESIZE * 8), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * mmap.PAGESIZE  # bit 63: present


def test_untouched_blocks_cost_nothing_and_released_ones_give_their_bytes_back() -> None:
    storage = PageStorage(BIG, 16_384)  # 1 GiB of address space
    where = storage.pages.data_ptr(), storage.reserved_bytes
    assert storage.reserved_bytes == 1024 * MIB
    assert storage.resident_bytes() == resident(*where) == 0
    storage.pages[: 640 * 16].fill_(1)
    assert storage.resident_bytes() == resident(*where) == 40 * MIB
    assert storage.release_blocks(range(320, 640)) == 20 * MIB
    assert storage.resident_bytes() == resident(*where) == 20 * MIB
    assert (storage.pages[: 320 * 16] == 1).all(), "neighbours keep their content"
    assert storage.release_blocks([0, 2, 3, 7]) == 4 * BIG.block_bytes
    held = storage.pages[:1]  # keeps the address space, so that nobody else's mapping comes to lie there
    storage.close()
    assert resident(*where) == 0
    assert (held == 0).all()


def test_huge_pages_hold_one_of_slack_and_a_hole_stays_a_hole() -> None:
    """Resident bytes stay within the blocks handed out, in ascending order, and the slack; where blocks were given
    back, one that returns brings back its own bytes alone.
    """
    storage = PageStorage(BIG, 1024, huge=True)  # 64 MiB, 32 blocks a huge page
    where, per_block = (storage.pages.data_ptr(), storage.reserved_bytes), BIG.pages_per_block
    assert storage.slack_bytes in (0, 2 * MIB), "0: this system has none"
    for num in (1, 70, 333):
        storage.pages[: num * per_block].fill_(5)
        assert num * BIG.block_bytes <= resident(*where) <= num * BIG.block_bytes + storage.slack_bytes
    storage.release_blocks(range(40, 300))
    held = resident(*where)
    assert held <= 73 * BIG.block_bytes + storage.slack_bytes
    storage.pages[100 * per_block : 101 * per_block].fill_(6)
    assert resident(*where) == held + BIG.block_bytes
    assert (storage.pages[: 40 * per_block] == 5).all(), "neighbours keep their content"
    storage.close()


def test_only_whole_memory_pages_inside_the_blocks_are_released() -> None:
    fmt = KVFormat(1, 1, 96, 96, 4, "float32")  # blocks of 3072 bytes
    storage = PageStorage(fmt, 64)
    storage.pages.fill_(3)
    assert storage.release_blocks([1]) == 0, "smaller than a memory page"
    assert storage.release_blocks([4, 5, 6, 7, 9]) == 3 * 4096
    assert storage.release_blocks([]) == 0
    kept = torch.ones(64, dtype=torch.bool)
    kept[4:8] = False
    assert (storage.pages[kept] == 3).all()
    assert (storage.pages[4:8] == 0).all()
    storage.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_and_latent_pages(dtype: str) -> None:
    for v_dim in (8, 0):
        storage = PageStorage(KVFormat(2, 1, 8, v_dim, 4, dtype), 3)
        assert storage.pages.dtype == getattr(torch, dtype)
        assert storage.pages.shape == (6, 4 * (8 + v_dim))
        assert storage.reserved_bytes == 3 * storage.fmt.block_bytes
        storage.close()


def test_copies_read_before_they_write() -> None:
    storage = PageStorage(SMALL, 2)
    storage.pages.copy_(torch.arange(4.0)[:, None].expand(4, 8))
    storage.run_copies([(0, 1), (1, 2)])
    assert storage.pages[:, 0].tolist() == [0, 0, 1, 3]
    storage.run_copies([])
    storage.close()


@pytest.mark.parametrize("as_arrays", [True, False])
def test_moves_read_before_they_write(as_arrays: bool) -> None:
    storage = PageStorage(SMALL, 2)
    storage.pages.copy_(torch.arange(32.0).view(4, 8))
    layout = storage.layout
    moves = [(0, 1, 0, 0), (1, 0, 0, 1), (1, 1, 1, 0)]
    keys, values = layout.k(storage.pages).clone(), layout.v(storage.pages).clone()
    storage.run_moves(SlotMoves(*np.array(moves, np.int32).T) if as_arrays else moves)
    for source, slot, target, to in moves:
        assert torch.equal(layout.k(storage.pages)[target, to], keys[source, slot])
        assert torch.equal(layout.v(storage.pages)[target, to], values[source, slot])
    storage.run_moves([])
    storage.run_moves(SlotMoves.join([]))
    storage.close()


def test_closing_with_a_view_alive_gives_the_bytes_back_all_the_same() -> None:
    storage = PageStorage(BIG, 512)
    where = storage.pages.data_ptr(), storage.reserved_bytes
    storage.pages.fill_(1)
    assert resident(*where) == 32 * MIB
    view = storage.pages[3]
    storage.close()
    storage.close()
    assert resident(*where) == 0
    assert view.sum() == 0
    assert len(storage.pages) == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_device_has_memory_for_the_blocks_that_are_held(device: str) -> None:
    """Blocks of 64 KiB, 32 a chunk of 2 MiB: content stays where a neighbour goes, and new memory reads as zeros."""
    driver = FalseDriver() if device == "cpu" else None
    storage = PageStorage(BIG, 1024, device, driver=driver)
    pages, per_block = storage.pages, BIG.pages_per_block
    assert storage.is_chunked
    assert storage.resident_bytes() == storage.held_bytes(0) == 0
    assert storage.held_bytes(0, range(40)) == 6 * MIB, "one stands in for chunks that are let go"
    storage.hold_blocks(range(40))
    storage.hold_blocks([100])
    assert storage.held_bytes(41) == storage.resident_bytes() == 8 * MIB
    assert pages[: 40 * per_block].count_nonzero() == 0
    pages[: 40 * per_block] = 3
    assert storage.held_bytes(41, [63, 64]) == 10 * MIB, "63 lies in a chunk that is there, 64 in one that is not"
    assert storage.release_blocks(range(32)) == 2 * MIB
    assert storage.release_blocks([100, *range(33, 40)]) == 2 * MIB
    assert pages[[0, 100 * per_block]].isfinite().all(), "what pads a batch may be read"
    assert storage.pages is pages
    assert pages[32 * per_block : 33 * per_block].eq(3).all()
    storage.hold_blocks(range(32))
    assert pages[: 32 * per_block].count_nonzero() == 0
    storage.run_copies([(32 * per_block, 7)])
    assert pages[7].eq(3).all()
    assert storage.release_blocks(range(33)) == 6 * MIB, "the last one takes the stand-in along"
    storage.hold_blocks([5])
    storage.close()
    assert storage.resident_bytes() == 0
    if driver is not None:
        assert driver.calls == {"create": 8, "release": 8}, "one of them while the tensor was made"


def test_a_device_gets_everything_back_from_who_was_never_closed() -> None:
    driver = FalseDriver()
    storage = PageStorage(BIG, 1024, driver=driver)
    storage.hold_blocks(range(40))
    storage.release_blocks(range(32))
    pages = storage.pages
    del storage
    gc.collect()
    assert driver.calls["free"] == 0, "a tensor still lies there"
    del pages
    assert driver.calls == {"create": 4, "release": 4, "free": 1}


def test_a_device_that_has_no_memory_left_holds_nothing_of_what_was_asked() -> None:
    storage = PageStorage(BIG, 1024, driver=FalseDriver(most_chunks=4))
    storage.hold_blocks(range(32))
    with pytest.raises(BudgetError, match="none left"):
        storage.hold_blocks(range(32, 160))
    assert storage.resident_bytes() == 4 * MIB
    storage.hold_blocks(range(32, 96))
    storage.close()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="dtype of KV pages 'fp8'; accepted: bfloat16, float16, float32"):
        KVFormat(1, 1, 8, 8, 4, "fp8")
    with pytest.raises(
        ConfigError, match="unknown kv_cache_dtype 'fp9'; accepted: auto, bfloat16, float16, float32, fp8, int4, int8"
    ):
        with_dtype(SMALL, "fp9")
    with pytest.raises(ConfigError, match="at least 1 block"):
        PageStorage(SMALL, 0)
    with pytest.raises(BudgetError, match="no address space"):
        PageStorage(BIG, 1 << 44)
