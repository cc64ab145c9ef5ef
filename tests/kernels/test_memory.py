"""Memory for weights: its shape, its place, and that it takes no more than it holds."""

import gc
import mmap
import os
from pathlib import Path

import pytest
import torch

from pagoda.core.nodes import read_nodes
from pagoda.core.types import KVFormat
from pagoda.kernels import memory as memory_module
from pagoda.kernels.memory import (
    HUGE_BYTES,
    LEAST_BYTES,
    TRAY_BYTES,
    empty_bytes,
    huge_bytes,
    may_spread,
    near_nodes,
    touch_behind,
)
from pagoda.kv.storage import PageStorage

CPU = torch.device("cpu")


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_small_tensors_are_plain() -> None:
    assert empty_bytes((3, 5), CPU).shape == (3, 5)
    assert empty_bytes((0, 5), CPU).numel() == 0


def test_large_tensors_begin_at_a_huge_page_and_go_back() -> None:
    size = 24 * HUGE_BYTES + 12345
    before = resident_bytes()
    tensor = empty_bytes((1, size), CPU)
    assert tensor.shape == (1, size)
    assert tensor.data_ptr() % HUGE_BYTES == 0
    assert resident_bytes() - before < HUGE_BYTES, "nothing is touched before it is filled"
    tensor.fill_(7)
    assert int(tensor[0, -1]) == 7
    assert resident_bytes() - before < size + 2 * HUGE_BYTES
    view = tensor[0, size - 100 :]
    del tensor
    gc.collect()
    assert int(view.sum()) == 700, "a view keeps the mapping"
    del view
    gc.collect()
    assert resident_bytes() - before < 3 * HUGE_BYTES


def test_the_last_huge_page_is_whole_where_half_of_it_is_used() -> None:
    half = HUGE_BYTES // 2
    for asked, given in ((0, 0), (half - 1, half - 1), (half, HUGE_BYTES), (HUGE_BYTES + 5, HUGE_BYTES + 5),
                         (3 * half, 2 * HUGE_BYTES)):  # fmt: skip
        tensor = huge_bytes(asked)
        assert tensor.numel() == given
        assert not tensor.any()
        assert given < HUGE_BYTES or tensor.data_ptr() % HUGE_BYTES == 0


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps what is given back")
def test_short_ones_lie_side_by_side_and_go_back_with_the_last() -> None:
    assert bool((torch.empty(LEAST_BYTES, dtype=torch.uint8).fill_(3) == 3).all()), "what torch keeps is there before"
    before, size = resident_bytes(), LEAST_BYTES + 4321
    tensors = [empty_bytes((3, size // 3), CPU) for _ in range(62)]  # two trays, full
    for number, tensor in enumerate(tensors):
        assert tensor.shape == (3, size // 3)
        assert tensor.data_ptr() % mmap.PAGESIZE == 0
        tensor.fill_(number)
    for number, tensor in enumerate(tensors):
        assert bool((tensor == number).all()), "they do not overlap"
    assert resident_bytes() - before < 2 * TRAY_BYTES + TRAY_BYTES // 2
    last = tensors.pop()
    del tensors, tensor
    gc.collect()
    assert resident_bytes() - before < TRAY_BYTES + TRAY_BYTES // 2, "the other tray went"
    assert bool((last == 61).all())
    del last
    gc.collect()
    assert resident_bytes() - before < TRAY_BYTES // 2
    assert bool((empty_bytes((LEAST_BYTES,), CPU).fill_(5) == 5).all()), "a new tray where the last one is gone"


def test_pages_come_from_the_end_and_what_is_written_stays() -> None:
    before = resident_bytes()
    memory = empty_bytes((12 * HUGE_BYTES,), CPU)
    memory[:100], memory[-100:] = 7, 9
    thread = touch_behind(memory)
    assert thread is not None
    thread.join()
    assert int(memory[:100].sum()) == 700
    assert int(memory[-100:].sum()) == 900
    assert resident_bytes() - before > 10 * HUGE_BYTES, "every page is there"


def test_little_memory_is_left_to_its_writer() -> None:
    assert touch_behind(empty_bytes((3, 5), CPU)) is None


def policy_at(address: int) -> str:
    """How the kernel places pages of the mapping that holds this address (numa(7))."""
    lines = [line.split() for line in Path("/proc/self/numa_maps").read_text().splitlines()]
    return max((int(start, 16), policy) for start, policy, *_ in lines if int(start, 16) <= address)[1]


@pytest.fixture
def places_pages() -> None:
    if not (Path("/proc/self/numa_maps").exists() and may_spread([node.number for node in read_nodes()[:1]])):
        pytest.skip("this system does not let a process place its pages")


@pytest.mark.usefixtures("places_pages")
def test_weights_and_kv_lie_on_several_nodes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes of a larger machine; the kernel counts those that are there."""
    first = read_nodes()[0].number
    monkeypatch.setattr(memory_module, "near_nodes", lambda cpus: (first, first + 1))
    weights = empty_bytes((4 * HUGE_BYTES,), CPU)
    assert policy_at(weights.data_ptr()).startswith(f"interleave:{first}")
    storage = PageStorage(KVFormat(2, 2, 64, 64, 16, "bfloat16"), 100)
    assert policy_at(storage.pages.data_ptr()).startswith(f"interleave:{first}")
    storage.close()


@pytest.mark.usefixtures("places_pages")
def test_beside_one_node_pages_lie_where_they_are_touched() -> None:
    nodes = near_nodes(frozenset(os.sched_getaffinity(0)))
    if len(nodes) > 1:
        pytest.skip("this machine has several nodes")
    assert policy_at(empty_bytes((4 * HUGE_BYTES,), CPU).data_ptr()) == "default"
    assert not may_spread([]), "on none"
    assert not may_spread([1000]), "a node that is not there"
