"""Memory for weights: its shape, its place, and that it takes no more than it holds."""

import gc

import torch

from pagoda.kernels.memory import HUGE_BYTES, empty_bytes, touch_behind

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
