"""The thread pool of the C++ kernels: every item once, whoever calls, from where and after what."""

from __future__ import annotations

import os
import threading

import pytest
import torch

cpu = pytest.importorskip("pagoda.kernels.cpu", reason="built without the C++ kernels")


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """x and a weight that is large enough to be shared among threads."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 512, generator=generator), torch.randn(2048, 512, generator=generator)
    return x.bfloat16(), weight.bfloat16()


def product(num_threads: int, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return cpu.linear(*pair)
    finally:
        torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    pair = inputs()
    expected = product(1, pair)
    for num_threads in (2, 3, 5, 2, 1, 4):
        for _ in range(20):
            assert torch.equal(product(num_threads, pair), expected)
    assert cpu.num_workers() >= 4, "the largest job so far had five threads"


def test_callers_at_the_same_time_do_not_disturb_each_other() -> None:
    pairs = [inputs(seed) for seed in range(4)]
    expected = [product(1, pair) for pair in pairs]
    wrong: list[int] = []

    def call(seed: int) -> None:
        wrong.extend(seed for _ in range(30) if not torch.equal(product(2, pairs[seed]), expected[seed]))

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_workers_that_slept_are_woken() -> None:
    pair = inputs()
    expected = product(1, pair)
    for _ in range(5):
        threading.Event().wait(0.01)  # far longer than they spin
        assert torch.equal(product(2, pair), expected)


def test_a_forked_child_starts_its_own_workers() -> None:
    pair = inputs()
    expected = product(2, pair)
    child = os.fork()
    if child == 0:  # our kernel alone: torch's OpenMP does not survive a fork, and pytest's exit handlers must not run
        os._exit(0 if torch.equal(product(2, pair), expected) and cpu.num_workers() == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
